#pragma once
// One inference job, from the command line's options to results, report and trace.

#include <functional>
#include <memory>

#include "app/config.hpp"
#include "comm/communicator.hpp"
#include "compute/backend.hpp"

namespace atl {

/// Until the first pass a wait may last so many deadlines: reading a model takes ranks longer than
/// any pass does.
inline constexpr double setup_deadlines = 10;

/// What becomes of a rank's backend before the run takes it: measurements put one of their own
/// around it.
using Wrap = std::function<std::unique_ptr<compute::Backend>(std::unique_ptr<compute::Backend>,
                                                             const compute::BackendOptions&)>;
/// Collective over all ranks. Throws Error (on all ranks alike before the first pass).
void run_job(const comm::Communicator& world, const RunOptions& options, const Wrap& wrap = {});

}  // namespace atl
