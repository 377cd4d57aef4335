#pragma once

#include <vector>

#include "app/plan/schedule.hpp"
#include "comm/communicator.hpp"

namespace atl {

/// Collective over the ranks of a stage: the schedules for 1 to `max_chunks` chunks, verified.
/// Throws Error where a rank builds others than the first.
std::vector<Schedule> agreed_schedules(const comm::Communicator& world, const ModelShape& shape,
                                       int max_chunks, bool overlap, const StageSteps& stage = {});

}  // namespace atl
