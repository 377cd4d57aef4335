#pragma once
// Requests to all ranks, results back to rank 0.

#include <string>
#include <vector>

#include "app/batch.hpp"
#include "app/report.hpp"
#include "comm/communicator.hpp"
#include "io/requests.hpp"

namespace atl {

/// Collective: rank 0's requests on every rank.
std::vector<io::Request> broadcast_requests(const comm::Communicator& world,
                                            std::vector<io::Request> requests);

/// Collective: the text of results.jsonl, in the order of the input, on rank 0 (empty elsewhere),
/// and when the requests got their tokens. `has_text`: token ids are bytes and shown as text too.
std::string gather_results(const comm::Communicator& world,
                           const std::vector<io::Request>& requests,
                           const std::vector<FinishedRequest>& mine, Mode mode, bool has_text,
                           RequestSummary& summary);

}  // namespace atl
