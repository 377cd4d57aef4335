#pragma once
// `run --layout auto`: the layout that the planner ranks first for this machine, model and
// requests.

#include "app/config.hpp"
#include "app/plan/job_layout.hpp"
#include "app/run/open_model.hpp"
#include "app/run/ranks.hpp"
#include "comm/communicator.hpp"

namespace atl {

/// Collective. Rank 0 plans for the machine that --machine describes, with the first requests of
/// the input, and says what it took. Throws AgreedFailure where the machine is not the one that the
/// ranks are on, or no layout fits it.
Division planned_division(const comm::Communicator& world, const RunOptions& options,
                          const OpenModel& model, const Ranks& ranks);

}  // namespace atl
