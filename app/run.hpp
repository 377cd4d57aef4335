#pragma once
// One inference job, from the command line's options to results, report and trace.

#include "app/config.hpp"
#include "comm/communicator.hpp"

namespace atl {

/// Until the first step a wait may last so many deadlines: reading a model takes ranks longer than
/// any step does.
inline constexpr double setup_deadlines = 10;

/// Arithmetic threads of one rank: `wanted`, or where that is 0 the cores of the node over the
/// ranks on it, at most the cores this process may use, at least 1.
int threads_per_rank(int wanted, int ranks_on_node);

/// Collective over all ranks. Throws Error (on all ranks alike before the first step).
void run_job(const comm::Communicator& world, const RunOptions& options);

}  // namespace atl
