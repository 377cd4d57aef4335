#pragma once
// Which rank takes which waiting request: a rule over all ranks' loads, so that every rank comes to
// the same answer.

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "app/plan/rank_load.hpp"

namespace atl {

/// A request that no rank has taken yet, and what it asks of the one that does.
struct WaitingRequest {
  std::int32_t request = 0;        ///< index into the requests
  std::int64_t pages = 0;          ///< of the KV cache, for its whole life
  std::int64_t prompt_tokens = 0;  ///< not yet processed
  std::int64_t new_tokens = 0;     ///< at most still to generate
  bool resumed = false;            ///< was under way when this run began

  std::int64_t work() const { return prompt_tokens + new_tokens; }
};

/// What of a request's prompt lies on a rank already, for others that are under way there.
struct HeldPrefix {
  std::int64_t pages = 0;   ///< that it need not take
  std::int64_t tokens = 0;  ///< that need not be processed
};

/// Of the ranks with a free sequence and enough free pages the one that would have the least work
/// with it, of equals the lowest; -1: none has room. `held`: of each rank; empty: nothing is.
int rank_for(const WaitingRequest& request, std::span<const RankLoad> loads,
             std::span<const HeldPrefix> held = {});

/// The queue of waiting requests. They are given out in order: one that fits nowhere keeps the
/// smaller ones behind it waiting, so that none waits for ever.
class Admission {
 public:
  Admission() = default;
  explicit Admission(std::span<const WaitingRequest> requests) { add(requests); }

  /// Puts requests at the end of the queue. Of these, resumed ones go first; otherwise the order
  /// stays.
  void add(std::span<const WaitingRequest> requests);

  struct Grant {
    std::int32_t request;
    int rank;
  };
  /// Gives the next request to a rank and adds it to that rank's load; none when the queue is empty
  /// or no rank has room. `held`: see rank_for().
  std::optional<Grant> next(std::span<RankLoad> loads, std::span<const HeldPrefix> held = {});

  std::span<const WaitingRequest> waiting() const { return std::span(queue_).subspan(next_); }
  /// Tokens of the waiting requests, of prompts and still to generate.
  std::int64_t work() const { return work_; }

 private:
  std::vector<WaitingRequest> queue_;
  std::size_t next_ = 0;
  std::int64_t work_ = 0;
};

}  // namespace atl
