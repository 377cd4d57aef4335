#pragma once
// Which step of a schedule runs next: the one rule.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "app/plan/schedule.hpp"

namespace atl {

/// Arithmetic under way at the same time, at most: the next step is there when one ends, and what
/// becomes ready meanwhile still goes by the schedule's priority, not by the queue's order. With
/// four, a chunk whose rows came back waited behind three others, and its next exchange with it.
inline constexpr std::size_t max_queued_in_order = 2;
/// A GPU's steps are short: with two, its streams would wait for the host.
inline constexpr std::size_t max_queued_on_streams = 4;

/// Flights whose arithmetic a rank takes up side by side: as many as one stage needs to be busy,
/// the oldest ones. If all went through a stage together, the other stages would wait for them.
inline int flights_of_stage(int num_flights, int num_stages) {
  return (num_flights + num_stages - 1) / num_stages;
}

/// A schedule on its way through one pass. The backend's queue keeps its order, so arithmetic may
/// be enqueued behind the arithmetic that it waits for; messages wait until that is done. Of the
/// arithmetic that could be enqueued, the first in the schedule goes first. After construction
/// nothing allocates.
class ReadySteps {
 public:
  explicit ReadySteps(Schedule schedule);

  const Schedule& schedule() const { return schedule_; }
  const Step& step(std::int32_t i) const { return schedule_.steps[static_cast<std::size_t>(i)]; }

  /// Begins a pass: nothing has run.
  void begin();
  /// Arithmetic to enqueue now, while fewer than `most_queued` steps are under way; -1: none. It
  /// counts as enqueued.
  std::int32_t next_arithmetic(std::size_t most_queued);
  /// Messages to post now, each returned once. Valid until the next call of anything here.
  std::span<const std::int32_t> take_messages();
  void completed(std::int32_t step);
  bool all_completed() const { return num_completed_ == schedule_.steps.size(); }
  bool arithmetic_left() const { return num_arithmetic_left_ > 0; }  ///< to be enqueued
  /// The first step that waits for another one; -1: none does.
  std::int32_t first_waiting() const;

 private:
  /// Lets those steps go on that waited for `step`: arithmetic, or messages, or both.
  void release(std::int32_t step, bool arithmetic, bool messages);

  Schedule schedule_;
  std::vector<std::vector<std::int32_t>> successors_;  // [steps]
  std::vector<std::int32_t> unmet_;                    // [steps] dependencies
  std::vector<std::int32_t> arithmetic_;               // min-heap of steps that may be enqueued
  std::vector<std::int32_t> messages_, taken_;
  std::size_t num_enqueued_ = 0;  // arithmetic under way
  std::size_t num_completed_ = 0;
  std::size_t num_arithmetic_left_ = 0;
};

}  // namespace atl
