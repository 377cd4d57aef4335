#include "compute/cuda/plan/kv.hpp"

#include <algorithm>

namespace atl::compute::cuda {

KvCache::KvCache(const BackendOptions& options, Arena& arena) {
  const OwnHeads own = own_heads(options.shape, options.part.attention);
  const auto bytes =
      static_cast<std::size_t>(options.num_pages * options.page_tokens * own.kv_width()) *
      size_of(options.dtype);
  for (int layer = 0; layer < options.shape.num_layers; ++layer) {
    KvPages pages;
    if (!options.part.has_layer(layer)) {
      layers.push_back(pages);
      continue;
    }
    pages.keys = arena.take_bytes(bytes);
    pages.values = arena.take_bytes(bytes);
    pages.num_kv_heads = own.num_kv_heads();
    pages.head_dim = own.head_dim;
    pages.page_tokens = options.page_tokens;
    layers.push_back(pages);
  }
}

std::int64_t most_pages(const BackendOptions& options) {
  const std::int64_t of_sequence =
      (options.shape.max_positions + options.page_tokens - 1) / options.page_tokens;
  return std::min(of_sequence, std::max<std::int64_t>(options.num_pages, 1));
}

int num_positions(const BackendOptions& options) {
  return static_cast<int>(
      std::min<std::int64_t>(options.shape.max_positions, options.num_pages * options.page_tokens));
}

}  // namespace atl::compute::cuda
