#pragma once
// What a request needs from the rank that serves it.

#include <cstdint>
#include <string>
#include <vector>

#include "app/plan/admission.hpp"
#include "app/run/batch_options.hpp"
#include "app/run/kept_progress.hpp"
#include "io/requests.hpp"

namespace atl {

/// Tokens that a request may generate.
int new_tokens_of(const io::Request& request, const BatchOptions& options);

/// KV pages that a request needs for its whole life.
std::int64_t pages_needed(const io::Request& request, const BatchOptions& options);

/// The requests that are left to serve, in their order; `kept` has an entry for each of them all.
std::vector<WaitingRequest> waiting_of(const std::vector<io::Request>& requests,
                                       const std::vector<KeptProgress>& kept,
                                       const BatchOptions& options);

/// Refuses the requests that need more KV cache than options.num_pages, but for those in `kept`
/// that are finished. `sized_by` says what gave the cache its size.
void refuse_beyond_cache(std::vector<io::Request>& requests, const std::vector<KeptProgress>& kept,
                         const BatchOptions& options, const std::string& sized_by);

}  // namespace atl
