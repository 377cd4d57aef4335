#pragma once
// What a request needs from the rank that serves it.

#include <cstdint>
#include <string>

#include "app/plan/memory.hpp"
#include "app/run/batch_options.hpp"
#include "app/run/request_list.hpp"
#include "app/run/sequences.hpp"
#include "io/requests.hpp"

namespace atl {

/// Tokens that a request may generate.
int new_tokens_of(const io::Request& request, const BatchOptions& options);
int new_tokens_of(const RequestEntry& request, const BatchOptions& options);

/// KV pages that a request needs for its whole life.
std::int64_t pages_needed(const io::Request& request, const BatchOptions& options);
std::int64_t pages_needed(const RequestEntry& request, const BatchOptions& options);

/// Why a request cannot be served that needs more KV cache than options.num_pages; empty for
/// others. `sized_by` says what gave the cache its size.
std::string beyond_cache(const RequestEntry& request, const BatchOptions& options,
                         const std::string& sized_by);

/// What all requests need together. Where only the first of them have been read, any later one may
/// be as long as the model allows, and there may be any number of them.
struct RequestNeeds {
  std::int64_t count = 0;    ///< the largest number where not all are read
  std::int64_t longest = 1;  ///< tokens of one, of its prompt and new ones
  PagesWanted pages;
};
RequestNeeds needs_of(const RequestList& requests, bool all_read, int max_positions, int num_ranks,
                      const BatchOptions& options);

/// Room for sequences in which every one of these requests finds place.
SequenceRoom room_for(const RequestNeeds& needs, const BatchOptions& options);

}  // namespace atl
