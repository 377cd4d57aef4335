#pragma once
// What would change the planner's answer: other links, loads and numbers of ranks.

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "app/run/plan.hpp"

namespace atl {

/// The job with one thing changed, in the same layout.
struct WhatIf {
  std::string change;
  double tokens_per_s = 0;
  std::string problem;  ///< why it cannot be; empty: it can
};
std::vector<WhatIf> what_ifs(const PlanInput& input, const PlannedLayout& layout);

/// Expert parallelism over more and more ranks, each with as many requests.
struct ScalingPoint {
  int ranks = 0;
  double tokens_per_s = 0;
  double of_linear = 0;  ///< of what the smallest that fits would give by as many ranks
  std::string problem;
};
std::vector<ScalingPoint> scaling(const PlanInput& input, const PlannedLayout& layout);

/// Where along an axis (requests, link rate, skew) another layout than `first` comes first, of the
/// best ones. `at` 0: nowhere that was looked at.
struct TurningPoint {
  std::string axis;
  std::string first;   ///< layout at the job itself
  double at = 0;       ///< times as many requests or bytes per second, or the skew's sigma
  std::string second;  ///< layout from there on
};
std::vector<TurningPoint> turning_points(const PlanInput& input, const RankedLayouts& ranked);

std::string what_if_text(const std::vector<WhatIf>& changes, double tokens_per_s);
std::string scaling_text(const std::vector<ScalingPoint>& points);
std::string turning_text(const std::vector<TurningPoint>& points);
nlohmann::ordered_json what_if_json(const std::vector<WhatIf>& changes,
                                    const std::vector<ScalingPoint>& points,
                                    const std::vector<TurningPoint>& turns);

}  // namespace atl
