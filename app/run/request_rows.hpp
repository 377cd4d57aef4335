#pragma once
// The rows of all requests, for files that have a place for each of them: activations, choices of
// experts.

#include <cstdint>
#include <string>
#include <vector>

#include "app/mode.hpp"
#include "app/run/request_list.hpp"
#include "comm/communicator.hpp"

namespace atl {

/// One row for every token of a request that may go through the layers, which the last one
/// generated does not. A request that is refused has none.
struct RequestRows {
  std::vector<std::string> ids;              ///< [requests], as io::name_of() has them
  std::vector<std::int64_t> prompt_lengths;  ///< [requests], tokens
  std::vector<std::int64_t> first_row;       ///< [requests + 1]
};

/// Of requests with these names. Those that say no number of new tokens get `max_tokens`.
RequestRows request_rows(const RequestList& requests, const std::vector<std::string>& names,
                         Mode mode, int max_tokens);

/// Collective: rank 0's on all ranks.
RequestRows shared_request_rows(const comm::Communicator& world, const RequestRows& rows);

}  // namespace atl
