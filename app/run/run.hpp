#pragma once
// One inference job, from the command line's options to results, report and trace.

#include "app/config.hpp"
#include "comm/communicator.hpp"

namespace atl {

/// Until the first pass a wait may last so many deadlines: reading a model takes ranks longer than
/// any pass does.
inline constexpr double setup_deadlines = 10;

/// Collective over all ranks. Throws Error (on all ranks alike before the first pass).
void run_job(const comm::Communicator& world, const RunOptions& options);

}  // namespace atl
