#include "app/run/logit_changes.hpp"

namespace atl {

LogitChange& LogitChanges::of(std::int32_t token) {
  const auto [place, is_new] = place_of_.try_emplace(token, changes_.size());
  if (is_new) changes_.push_back({.token = token});
  return changes_[place->second];
}

void LogitChanges::begin(const io::Request& asked, std::span<const std::int32_t> prompt,
                         std::span<const std::int32_t> stop_tokens) {
  changes_.clear();
  place_of_.clear();
  penalises_ = asked.sampling().penalises();
  banned_for_ = asked.min_tokens;
  for (const auto& [token, bias] : asked.logit_bias) of(token).bias = bias;
  if (asked.repetition_penalty != 1) {
    for (const std::int32_t token : prompt) of(token).repeated = true;
  }
  if (banned_for_ == 0) return;
  for (const auto stops : {std::span<const std::int32_t>(asked.stop_token_ids), stop_tokens}) {
    for (const std::int32_t token : stops) of(token).banned = true;
  }
}

void LogitChanges::add(std::int32_t token) {
  if (banned_for_ > 0 && --banned_for_ == 0) lift_bans();
  if (!penalises_) return;
  LogitChange& change = of(token);
  change.repeated = true;
  ++change.generated;
}

void LogitChanges::lift_bans() {
  for (LogitChange& change : changes_) change.banned = false;
}

}  // namespace atl
