#pragma once
// The planner's answer as one HTML page that needs nothing else: pictures are in it, and it runs no
// program.

#include <string>

#include "app/run/plan.hpp"

namespace atl {

/// `ranked` may be null; `drawing` is the folded deployment as SVG.
std::string plan_page(const PlanInput& input, const PlannedLayout& layout,
                      const RankedLayouts* ranked, const std::string& drawing);

}  // namespace atl
