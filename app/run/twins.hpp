#pragma once
// Requests that are computed a second time, without the offsets of their block: what those changed
// is measured in the run itself.

#include <cstdint>
#include <deque>
#include <map>
#include <unordered_map>
#include <vector>

#include "app/plan/gate_bias.hpp"
#include "app/run/batcher.hpp"
#include "app/run/finished_request.hpp"

namespace atl {

/// A twin's number is that of its request, above all numbers of requests.
inline constexpr std::int32_t first_twin = 1 << 30;
inline bool is_twin(std::int32_t request) {
  return request >= first_twin;
}

/// Of every so many lines of the input one is computed again when it has finished, on the ranks
/// that had it: a score as it was, a generation with the same tokens, whose log-probabilities are
/// compared.
class Twins {
 public:
  Twins(Mode mode, const BiasOptions& options, const BatchOptions& batch)
      : mode_(mode), options_(options), batch_(batch) {}

  bool is_sampled(std::int64_t line) const { return (line - 1) % options_.sample == 0; }
  /// Keeps the prompts of sequences that have been taken up and will have twins.
  void keep_prompts(const Sequences& sequences);
  /// Takes the twins out of what has finished, and makes those of the rest.
  void take(std::vector<FinishedRequest>& finished);
  /// Takes up twins that wait, as far as the batcher has room.
  void take_up(Batcher& batcher);

  /// Of the sample of one block: requests that need nothing more, and what they gave.
  struct Done {
    std::int64_t requests = 0;
    Drift drift;
  };
  Done done(std::int64_t block) const;
  /// Of all blocks that have been forgotten and those that have not.
  const Drift& all() const { return all_; }
  std::int64_t compared() const { return compared_; }
  void forget(std::int64_t block) { done_.erase(block); }

 private:
  struct Twin {
    io::Request asked;
    std::vector<std::int32_t> forced;  // tokens, of a generation
    std::vector<float> logprobs;       // with offsets
  };
  std::int64_t block_of(std::int64_t line) const { return (line - 1) / options_.block; }
  void make(const FinishedRequest& done);
  void compare(const FinishedRequest& done);
  void count(std::int64_t line, const Drift& drift);

  Mode mode_;
  BiasOptions options_;
  BatchOptions batch_;
  std::unordered_map<std::int32_t, io::Request> prompts_;  // by request
  std::unordered_map<std::int32_t, Twin> twins_;           // waiting or under way, by request
  std::deque<std::int32_t> waiting_;
  std::map<std::int64_t, Done> done_;  // by block
  Drift all_;
  std::int64_t compared_ = 0;
};

}  // namespace atl
