#pragma once

#include <vector>

#include "comm/communicator.hpp"
#include "io/requests.hpp"

namespace atl {

/// Collective: rank 0's requests on every rank.
std::vector<io::Request> broadcast_requests(const comm::Communicator& world,
                                            std::vector<io::Request> requests);

}  // namespace atl
