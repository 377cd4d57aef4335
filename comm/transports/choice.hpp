#pragma once
// Which way rows travel: no transport is used before a small exchange with checked contents has
// passed over it.

#include <optional>
#include <vector>

#include "comm/transports/transport.hpp"
#include "compute/device_memory.hpp"

namespace atl::comm {

/// In which order "auto" tries them. In device memory MPI_Ialltoallv comes first over UCX;
/// elsewhere pairwise does, since Open MPI's documentation takes device pointers in point-to-point
/// calls only.
std::vector<TransportKind> transports_to_try(bool on_device, bool over_ucx);

/// Collective: a small exchange with unequal, partly empty shares and checked contents, of rows in
/// the memory of `device` where one is given. True on all ranks if every row arrived everywhere.
bool canary(const Communicator& parent, TransportKind kind,
            compute::DeviceMemory* device = nullptr);

/// Collective: the transport `wanted`, or with none the first whose canary passes. Rows in
/// host memory go by ialltoallv or pairwise; rows in the memory of `device` by these where the MPI
/// library moves device memory (see transports_to_try), else staged. Throws Error when none works.
TransportKind choose_transport(const Communicator& parent, std::optional<TransportKind> wanted,
                               compute::DeviceMemory* device = nullptr);

}  // namespace atl::comm
