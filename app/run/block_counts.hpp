#pragma once
// What prompts chose, by blocks of requests; and what choosing otherwise than the router would gave
// up.

#include <cstdint>
#include <map>
#include <unordered_map>
#include <vector>

#include "app/run/batcher.hpp"
#include "app/run/computed_rows.hpp"
#include "app/run/finished_request.hpp"
#include "app/run/routing_record.hpp"

namespace atl {

/// Of all rows that this rank routed, twins left out, each as often as there are MoE layers.
struct GivenUp {
  std::int64_t choices = 0;  ///< rows times layers
  std::int64_t changed = 0;  ///< of these with other experts than the router's own
  double mass = 0;           ///< router probability of its own experts less that of those taken

  void add(float mass_of_choice);
};

/// Of this rank's rows.
class BlockCounts {
 public:
  /// The rank is the `place`-th of `members` that share a chunk's rows.
  BlockCounts(const ModelShape& shape, std::int64_t block, int max_chunks, int place, int members);

  /// Where what a layer chose for the rows of a chunk goes.
  RoutingRecord::Place place(int chunk, int layer, std::size_t tokens);
  /// Of the pass that has just run, before the batcher's finish_pass().
  void take(Batcher& batch, int first_slot);
  /// After it.
  void finish(const std::vector<FinishedRequest>& finished);

  std::int64_t block_of(std::int64_t line) const { return (line - 1) / block_; }
  /// Prompts of a block that are done, on this rank.
  std::int64_t prompts(std::int64_t block) const;
  /// [MoE layers * experts]: prompt tokens of a block that chose each expert.
  std::vector<std::int64_t> counts(std::int64_t block) const;
  /// It and those before are not asked for again.
  void forget(std::int64_t block);
  const GivenUp& given_up() const { return given_up_; }

 private:
  struct Chosen {  // of a chunk in a layer, [own tokens]
    std::vector<std::int32_t> experts;
    std::vector<float> weights, given_up;
  };
  struct Open {  // a prompt under way
    std::int64_t block = 0;
    std::int32_t prompt_length = 0;
    std::vector<std::int32_t> counts;
  };
  struct Block {
    std::int64_t prompts = 0;
    std::vector<std::int64_t> counts;
  };
  std::size_t index(int chunk, std::size_t layer) const {
    return static_cast<std::size_t>(chunk) * num_layers_ + layer;
  }
  void open_prompts(const Sequences& sequences);
  void append(int chunk, const compute::Segment& segment, std::int32_t request);
  void close(const Open& open);

  std::int64_t block_;
  std::size_t num_layers_;  // with experts
  std::size_t num_experts_, top_k_;
  std::vector<int> index_of_layer_;  // [layers], -1: dense
  std::vector<Chosen> chosen_;       // [chunks * MoE layers]
  std::unordered_map<std::int32_t, Open> open_;
  std::map<std::int64_t, Block> blocks_;
  ComputedRows rows_;
  GivenUp given_up_;
};

}  // namespace atl
