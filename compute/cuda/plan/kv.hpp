#pragma once
// The KV cache on the device.

#include <vector>

#include "compute/backend.hpp"
#include "compute/both.hpp"
#include "compute/cuda/plan/arena.hpp"

namespace atl::compute::cuda {

/// One layer's KV cache: keys and values lie apart, each [num_pages, kv_heads, page_tokens,
/// head_dim], the layout that cuDNN's paged attention takes too; or values have another width. Of
/// latent attention there are rows of one head, whose first part is the values too.
struct KvPages {
  void* keys = nullptr;
  void* values = nullptr;  ///< of latents the keys
  int num_kv_heads = 0;
  int head_dim = 0;
  int page_tokens = 0;
  int value_dim = 0;  ///< 0: head_dim

  ATOLL_BOTH int values_dim() const { return value_dim > 0 ? value_dim : head_dim; }
  /// From one token's values to the next one's.
  ATOLL_BOTH int value_stride() const { return values == keys ? head_dim : values_dim(); }
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
