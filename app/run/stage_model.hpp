#pragma once
// --stage: the model on a disk of each node's own.

#include <string>

#include "app/config.hpp"
#include "comm/communicator.hpp"

namespace atl {

/// Collective. Where the model is to be read from: --model, or the copy that one rank of each node
/// makes of it in --stage, if it is not there yet. Throws AgreedFailure where a copy cannot be
/// made.
std::string staged_model(const comm::Communicator& world, const RunOptions& options);

}  // namespace atl
