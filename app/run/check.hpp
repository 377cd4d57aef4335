#pragma once
// `atoll check`: whether a machine is right for a job, before its first token.

#include "app/config.hpp"
#include "comm/communicator.hpp"

namespace atl {

/// Collective. Measures for some seconds, prints a screen on rank 0, writes the report. Throws
/// Error (agreed) where there are problems, after saying which.
void check_machine(const comm::Communicator& world, const CheckOptions& options);

}  // namespace atl
