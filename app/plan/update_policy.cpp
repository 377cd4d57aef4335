#include "app/plan/update_policy.hpp"

#include <algorithm>

namespace atl {

namespace {

UpdatePhase phase_of(const RankLoad& load) {
  return static_cast<UpdatePhase>(load.update);
}

bool is_time(std::span<const RankLoad> loads, UpdateMode mode) {
  const bool under_way =
      std::ranges::any_of(loads, [](const RankLoad& load) { return load.remaining_work > 0; });
  const bool waiting = loads[0].next_pages != 0;  // or still to be read
  if (mode == UpdateMode::in_flight) return under_way || waiting;
  // What an earlier run began has keys and values of the weights that are there.
  return waiting && !under_way && loads[0].resumed_waiting == 0 && loads[0].line_begun == 0;
}

}  // namespace

UpdateMove next_update_move(std::span<const RankLoad> loads, UpdateMode mode) {
  const UpdatePhase phase = phase_of(loads[0]);
  if (phase == UpdatePhase::found) return UpdateMove::open;
  if (phase == UpdatePhase::ready) {
    return is_time(loads, mode) ? UpdateMove::take_up : UpdateMove::none;
  }
  const bool checked = std::ranges::all_of(
      loads, [](const RankLoad& load) { return phase_of(load) == UpdatePhase::checked; });
  return checked ? UpdateMove::judge : UpdateMove::none;
}

bool admits_new(std::span<const RankLoad> loads) {
  return phase_of(loads[0]) != UpdatePhase::ready || loads[0].line_begun != 0;
}

}  // namespace atl
