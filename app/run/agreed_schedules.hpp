#pragma once

#include <vector>

#include "app/plan/schedule.hpp"
#include "comm/communicator.hpp"

namespace atl {

/// Collective: the schedules for 1 to `max_chunks` chunks by a route, verified. Throws Error where
/// a rank builds others than rank 0.
std::vector<Schedule> agreed_schedules(const comm::Communicator& world, const ModelShape& shape,
                                       int max_chunks, bool overlap, Route route = Route::flat);

}  // namespace atl
