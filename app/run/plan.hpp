#pragma once
// `atoll plan`: does a job fit, which layout pays, how fast will it be. Without MPI, CUDA or GPU.

#include <string>
#include <vector>

#include "app/config.hpp"
#include "app/run/planned_layout.hpp"

namespace atl {

/// Model, machine, workload and routing that the options name. Throws Error, or UsageError, which
/// says what would work.
PlanInput plan_input(const PlanOptions& options);

/// Layouts in order of their rank: those that fit by what the whole job takes, the fastest first.
struct RankedLayouts {
  std::vector<PlannedLayout> fitting;
  std::vector<PlannedLayout> bounded;  ///< that fit and are behind: see PlannedLayout::bound
  std::vector<PlannedLayout> too_large;
};
/// All divisions of the ranks that model and machine allow.
RankedLayouts rank_layouts(const PlanInput& input);

/// Plans, writes what --output asks for, and returns the text.
std::string plan_job(const PlanOptions& options);

}  // namespace atl
