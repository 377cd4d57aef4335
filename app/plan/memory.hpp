#pragma once
// What is decided from the memory plan: how many KV pages a rank takes, and whether its buffers for
// received rows are as large as any routing can make them.

#include <cstdint>
#include <span>

#include "compute/backend.hpp"

namespace atl {

/// KV pages that requests can use on one rank.
struct PagesWanted {
  std::int64_t largest = 1;  ///< of one request
  std::int64_t useful = 1;   ///< >= largest: more would stay empty
};
/// `pages` are those of each request that is served by one of the ranks.
PagesWanted pages_wanted(std::span<const std::int64_t> pages, int num_ranks);

/// Of the host's memory that a rank was given, the part for its KV cache.
inline constexpr double kv_share_of_host_memory = 0.4;

/// The KV pages that a rank takes in `memory_bytes` of host memory unless it is told how many.
std::int64_t pages_in_host_memory(const compute::BackendOptions& options, double memory_bytes,
                                  const PagesWanted& wanted);

/// The KV pages that fit into `bytes` of host memory beside everything else that these options say;
/// 0 where not even that does.
std::int64_t pages_beside(const compute::BackendOptions& options, std::int64_t bytes);

/// Whether all that these options say fits into `bytes` of a GPU.
bool fits_device(const compute::BackendOptions& options, std::int64_t bytes);

/// The most KV pages, up to `wanted` >= 1, that fit into `bytes` of a GPU beside everything else
/// these options say (their `num_pages` does not matter); 0 where not even one does.
std::int64_t fitting_pages(compute::BackendOptions options, std::int64_t bytes,
                           std::int64_t wanted);

/// The same options with receive buffers that never grow.
compute::BackendOptions for_any_routing(compute::BackendOptions options);

/// The KV pages that a rank takes in `bytes` of a GPU unless it is told how many: up to what is
/// useful, and what fits beside buffers for any routing. Where the largest request would not fit
/// then, or the cache were less than half as large, the buffers are those of `options`, which may
/// grow.
std::int64_t pages_on_device(const compute::BackendOptions& options, std::int64_t bytes,
                             const PagesWanted& wanted);

}  // namespace atl
