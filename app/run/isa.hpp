#pragma once
// Which instruction sets a run computes with on CPUs. Results have other bits with each, so that
// all ranks agree on one, and a resumed run keeps that of the run before.

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "comm/communicator.hpp"
#include "compute/cpu/isa.hpp"

namespace atl {

/// `wanted` is --isa; with none it is `recorded`, which an interrupted run computed with, or where
/// that is empty the widest that all ranks can; `able` says what each rank can at most. Throws
/// Error naming the first rank that cannot compute with what it comes to.
compute::CpuIsa agreed_isa(std::optional<compute::CpuIsa> wanted, const std::string& recorded,
                           const std::vector<compute::CpuIsa>& able);

/// Collective, before any arithmetic; `recorded` is rank 0's. `mine` tells what this rank can at
/// most, and is asked where that may be AMX. Every rank computes with what all agree on, and
/// returns it. Throws Error.
compute::CpuIsa use_agreed_isa(const comm::Communicator& world,
                               std::optional<compute::CpuIsa> wanted, const std::string& recorded,
                               const std::function<compute::CpuIsa()>& mine);

}  // namespace atl
