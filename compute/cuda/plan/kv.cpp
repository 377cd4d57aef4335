#include "compute/cuda/plan/kv.hpp"

#include <algorithm>

namespace atl::compute::cuda {

KvCache::KvCache(const BackendOptions& options, Arena& arena) {
  const LatentAttention& latent = options.shape.latent;
  const auto rows_of = [&](std::int64_t width) {
    return arena.take_bytes(
        static_cast<std::size_t>(options.num_pages * options.page_tokens * width) *
        size_of(options.dtype));
  };
  for (int layer = 0; layer < options.shape.num_layers; ++layer) {
    KvPages pages;
    if (!options.part.has_layer(layer)) {
      layers.push_back(pages);
      continue;
    }
    const OwnHeads own = own_heads(options.shape, options.part.attention, layer);
    pages.num_kv_heads = latent.used() ? 1 : own.num_kv_heads();
    pages.head_dim = latent.used() ? latent.width() : own.head_dim;
    pages.value_dim = latent.used() ? latent.keys : own.value_dim;
    pages.page_tokens = options.page_tokens;
    pages.keys = rows_of(pages.num_kv_heads * pages.head_dim);
    pages.values = latent.used() ? pages.keys : rows_of(pages.num_kv_heads * pages.value_dim);
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
