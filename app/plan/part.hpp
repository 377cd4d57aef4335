#pragma once
// What of the model a rank has, by layout and placement.

#include "app/plan/job_layout.hpp"
#include "app/plan/placement.hpp"
#include "compute/weights.hpp"

namespace atl {

/// `placement` is of the ranks between which experts' rows go, alike in all such groups. Throws
/// Error where the model does not divide so.
compute::Part part_of(const JobLayout& job, const Placement& placement, const ModelShape& shape,
                      int rank, compute::OutputCut output);

}  // namespace atl
