#include "app/plan/checkpoint_policy.hpp"

#include <algorithm>

namespace atl {

CheckpointMove next_move(std::span<const RankLoad> loads, bool under_way) {
  using Kind = CheckpointMove::Kind;
  const auto is = [](CheckpointPhase phase) {
    return [phase](const RankLoad& load) {
      return load.checkpoint == static_cast<std::int32_t>(phase);
    };
  };
  if (!under_way) return {is(CheckpointPhase::due)(loads[0]) ? Kind::begin : Kind::none};
  const auto failed = std::find_if(loads.begin(), loads.end(), is(CheckpointPhase::failed));
  if (failed != loads.end()) return {Kind::give_up, static_cast<int>(failed - loads.begin())};
  const bool all = std::all_of(loads.begin(), loads.end(), is(CheckpointPhase::written));
  return {all ? Kind::end : Kind::go_on};
}

bool CheckpointPolicy::due(std::int64_t pass, double now) {
  if (last_time_ == 0) last_time_ = now;
  return every_.passes > 0 ? pass - last_pass_ >= every_.passes
                           : now - last_time_ >= every_.seconds;
}

void CheckpointPolicy::begun(std::int64_t pass, double now) {
  last_pass_ = pass;
  last_time_ = now;
}

std::vector<std::string> retired(std::span<const std::string> files, const std::string& needed) {
  constexpr std::size_t num_kept = 2;
  std::vector<std::string> gone;
  for (std::size_t i = 0; i + num_kept < files.size(); ++i) {
    if (files[i] != needed) gone.push_back(files[i]);
  }
  return gone;
}

}  // namespace atl
