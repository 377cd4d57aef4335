#pragma once

#include <cstdint>
#include <limits>

#include "app/plan/gate_bias.hpp"
#include "app/plan/load_watch.hpp"
#include "app/plan/pass_choice.hpp"

namespace atl {

/// In place of the pages of a request that is still to be read.
inline constexpr std::int64_t unread_pages = -1;

/// Of the experts that change their ranks.
struct MoveState {
  std::int32_t arrived = 1;  ///< 0: some are still on their way to or from this rank
  double lost_s = 0;         ///< in which this rank's passes waited for those of the last change
};

/// Of blocks of requests, see GateBalance: how far the first one is whose prompts are not all done,
/// and the first whose sample is not.
struct BlockLoad {
  std::int64_t prompts = 0;  ///< of that block that this rank has done
  std::int64_t sampled = 0;  ///< the same of the sample
  Drift drift;               ///< that these gave
  /// The first block of which this rank has a request, on rank 0 also of those that wait.
  std::int64_t oldest = std::numeric_limits<std::int64_t>::max();
  // Of rank 0: how many there are; -1: not all of the block's lines have been read.
  std::int64_t all_prompts = -1;
  std::int64_t all_sampled = -1;
  std::int32_t held_back = 0;  ///< 1: the next request's block waits for these
};

/// What a rank tells the others before each pass.
struct RankLoad {
  std::int64_t prompt_tokens = 0;   ///< of the pass's sequences, not yet processed
  std::int64_t remaining_work = 0;  ///< of all: prompt tokens plus tokens it may still generate
  std::int64_t free_pages = 0;
  std::int32_t decoding = 0;  ///< rows of the pass's sequences that generate
  std::int32_t free_sequences = 0;
  std::int32_t sequences = 0;     ///< of the pass
  std::int32_t stop_signal = 0;   ///< that this rank was sent; 0: none
  std::int32_t checkpoint = 0;    ///< a CheckpointPhase
  std::int32_t update = 0;        ///< an UpdatePhase
  std::int64_t prompt_saved = 0;  ///< tokens of prompts so far that had been computed for others
  std::int64_t proposed = 0;      ///< tokens so far by PromptLookup
  std::int64_t accepted = 0;      ///< of these, that were drawn as well
  std::int64_t result_bytes = 0;  ///< of requests finished since the last pass, for rank 0
  PassCost cost;                  ///< of the last pass; rank 0's decides how the next one runs
  MoveState moves;
  std::int32_t broken_layer = -1;  ///< of an expert of this rank whose weights have changed
  std::int32_t broken_expert = 0;
  BlockLoad blocks;
  RankWork work;  ///< for experts, since the last pass was agreed on
  // Of rank 0, which has all requests:
  std::int64_t next_pages = 0;       ///< of the KV cache, for the one that is next; 0: none waits
  std::int32_t resumed_waiting = 0;  ///< were under way when this run began
  std::int32_t line_begun = 0;       ///< 1: the next one's line has others that were given out
  std::int32_t status_due = 0;       ///< 1: the --status file is written now
  // From rank 0, for each rank:
  std::int64_t admitted_bytes = 0;  ///< of the message with what it takes up
};

}  // namespace atl
