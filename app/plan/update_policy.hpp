#pragma once
// When the ranks of a job take up other weights: rules over all ranks' loads, so that every rank
// comes to the same answer.

#include <cstdint>
#include <span>
#include <string_view>

#include "app/plan/rank_load.hpp"

namespace atl {

/// What becomes of requests that are under way when an update is ready.
enum class UpdateMode : std::uint8_t {
  drain,      ///< they end with the weights that they began with; new ones wait meanwhile
  in_flight,  ///< they go on with the new ones, from the next pass on
};

constexpr std::string_view name_of(UpdateMode mode) {
  return mode == UpdateMode::drain ? "drain" : "in-flight";
}

/// How far an update of the weights is, as a rank says before each pass.
enum class UpdatePhase : std::int32_t {
  none,
  found,     ///< by rank 0
  checking,  ///< this rank reads its part of the file, beside the passes
  checked,   ///< it has, however that went
  ready,     ///< all have, and all is well: to be taken up
};

/// What all ranks do next, between two passes.
enum class UpdateMove : std::uint8_t {
  none,
  open,     ///< the file that was found
  judge,    ///< agree on what the ranks found
  take_up,  ///< its weights, in place of those that are there
};

/// Not taken up where nothing is left to do with it, or, by UpdateMode::drain, while anything is
/// under way: here, or in what an earlier run began, a line of samples among it.
UpdateMove next_update_move(std::span<const RankLoad> loads, UpdateMode mode);

/// Whether requests that no run has begun may be admitted before the next pass: until an update is
/// ready, and after that those whose line has others that were admitted, so that all of a line have
/// one version.
bool admits_new(std::span<const RankLoad> loads);

}  // namespace atl
