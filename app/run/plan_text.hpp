#pragma once
// The planner's answers, for people and for programs.

#include <nlohmann/json.hpp>
#include <string>

#include "app/run/plan.hpp"

namespace atl {

/// What machine, model, work and routing are.
std::string input_text(const PlanInput& input);
/// Memory, phases, and the job as a whole.
std::string layout_answer(const PlanInput& input, const PlannedLayout& layout);
/// A row for each layout, with what limits it.
std::string ranking_text(const PlanInput& input, const RankedLayouts& layouts);

/// What limits a phase: "arithmetic", "memory", a link, waiting, the host.
std::string limit_of(const PlannedPhase& phase);

nlohmann::ordered_json plan_json(const PlanInput& input, const PlannedLayout& layout);
nlohmann::ordered_json ranking_json(const PlanInput& input, const RankedLayouts& layouts);

}  // namespace atl
