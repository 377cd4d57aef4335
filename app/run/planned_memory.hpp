#pragma once
// What a planned layout takes of its ranks' memory.

#include "app/plan/job_layout.hpp"
#include "app/run/planned_layout.hpp"

namespace atl {

/// Limits of the job's passes and what each rank's backend would be given.
struct PlannedSizes {
  BatchOptions batch;
  LayoutMemory memory;
};
PlannedSizes planned_sizes(const PlanInput& input, const JobLayout& job,
                           const Placement& placement);

}  // namespace atl
