#pragma once
// The KV cache on the device.

#include <vector>

#include "compute/backend.hpp"
#include "compute/cuda/plan/arena.hpp"

namespace atl::compute::cuda {

/// One layer's KV cache: keys and values lie apart, each [num_pages, kv_heads, page_tokens,
/// head_dim], the layout that cuDNN's paged attention takes too.
struct KvPages {
  void* keys = nullptr;
  void* values = nullptr;
  int num_kv_heads = 0;
  int head_dim = 0;
  int page_tokens = 0;
};

/// The KV cache of all layers.
struct KvCache {
  KvCache() = default;
  KvCache(const BackendOptions& options, Arena& arena);
  std::vector<KvPages> layers;
};

/// Pages of one sequence, at most.
std::int64_t most_pages(const BackendOptions& options);
/// Positions that a sequence can reach: the model's, or fewer where the KV cache ends earlier.
int num_positions(const BackendOptions& options);

}  // namespace atl::compute::cuda
