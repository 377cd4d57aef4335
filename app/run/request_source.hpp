#pragma once
// The requests of a run, on rank 0: read by a thread of its own, so that the first of a long file
// are served while the others are still read.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "app/run/identity.hpp"
#include "app/run/shards.hpp"
#include "io/requests.hpp"

namespace atl {

class RequestSource {
 public:
  /// Reads the beginning of the file; with `shard` keeps its requests only. Throws Error as
  /// io::RequestReader does.
  RequestSource(const std::string& path, const io::RequestLimits& limits,
                std::optional<Shard> shard);
  /// What has not been read yet is left.
  ~RequestSource();
  RequestSource(const RequestSource&) = delete;
  RequestSource& operator=(const RequestSource&) = delete;

  /// Those of this run, as many as have been taken. Theirs to change for who serves them.
  std::vector<io::Request>& requests() { return requests_; }
  const std::vector<io::Request>& requests() const { return requests_; }
  /// Waits for more of them, and takes all that the thread has; false when there are none left.
  /// Throws Error when the file cannot be read any more.
  bool take_more();
  void take_all();
  /// Takes what the thread has, without a wait. Throws as take_more() does.
  void take_ready();

  bool all_taken() const { return all_taken_; }
  /// Lines whose requests were taken, those of other shards with them.
  std::int64_t num_taken() const { return static_cast<std::int64_t>(sums_.size()); }

  /// What the identity of a run says of the requests taken so far.
  InputFacts facts() const;
  /// The same as another run said it that had read fewer of them: so that the two compare. `input`
  /// is what it said.
  InputFacts facts_like(const std::string& input) const;

 private:
  struct Reading;
  /// A few requests with what the identity needs of them.
  struct Block {
    std::vector<io::Request> requests;
    std::vector<std::uint64_t> sums;  // after each line, those of other shards with them
    std::optional<std::int64_t> first_drawing;
  };
  void take(Block& block);
  void take_from_thread(bool wait);
  bool draws(std::int64_t first_requests) const;

  std::vector<io::Request> requests_;
  std::vector<std::uint64_t> sums_;  // [lines], checksum over all requests up to each
  std::optional<std::int64_t> first_drawing_;
  bool all_taken_ = false;
  std::unique_ptr<Reading> reading_;
};

}  // namespace atl
