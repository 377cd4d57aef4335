#include "compute/cpu/kv.hpp"

#include <cstring>

namespace atl::compute {

namespace {

/// Keys: runs of `run` dimensions lie together, panel_tokens tokens apart (see KvLayout).
template <class T>
void move_position(const KvMove& move, int position, std::int64_t row, bool save, int run) {
  const KvLayout& layout = move.layout;
  const int d = layout.head_dim;
  const int value_dim = layout.value_dim;
  const int token = position % layout.page_tokens;
  const auto page = move.pages[static_cast<std::size_t>(position / layout.page_tokens)];
  const auto copy = [save](T* paged, T* plain, int count) {
    const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(T);
    std::memcpy(save ? plain : paged, save ? paged : plain, bytes);
  };
  if (layout.latent_width > 0) {
    copy(static_cast<T*>(move.kv) + page * layout.page_elements() +
             std::int64_t{token} * layout.latent_stride,
         static_cast<T*>(move.keys) + row * layout.latent_width, layout.latent_width);
    return;
  }
  for (int h = 0; h < layout.num_kv_heads; ++h) {
    T* head = static_cast<T*>(move.kv) + page * layout.page_elements() + h * layout.head_elements();
    const std::int64_t at = (row * layout.num_kv_heads + h) * d;
    T* panel = head + std::int64_t{token / panel_tokens} * panel_tokens * d;
    T* key = static_cast<T*>(move.keys) + at;
    for (int i = 0; i < d; i += run) {
      copy(panel + std::int64_t{i} * panel_tokens + token % panel_tokens * run, key + i, run);
    }
    copy(head + layout.keys_per_head() + std::int64_t{token} * layout.value_stride,
         static_cast<T*>(move.values) + (row * layout.num_kv_heads + h) * value_dim, value_dim);
  }
}

}  // namespace

KvLayout kv_layout_of(const BackendOptions& options, int layer) {
  const OwnHeads own = own_heads(options.shape, options.part.attention, layer);
  const auto padded = [](int width) { return (width + 15) / 16 * 16; };
  return {own.num_heads,       own.num_kv_heads(), own.head_dim,     padded(own.value_dim),
          options.page_tokens, own.value_dim,      own.latent_width, padded(own.latent_width)};
}

CpuKvCache::CpuKvCache(const BackendOptions& options, HostArena& arena) {
  for (int layer = 0; layer < options.shape.num_layers; ++layer) {
    constexpr std::size_t first_pages = std::size_t{2} << 20;  // the rest may be gigabytes
    if (!options.part.has_layer(layer)) {
      layers.emplace_back();
      continue;
    }
    const std::int64_t elements = options.num_pages * kv_layout_of(options, layer).page_elements();
    layers.push_back(
        arena.buffer(elements * static_cast<std::int64_t>(size_of(options.dtype)), first_pages));
  }
}

void move_kv_position(const KvMove& move, int position, std::int64_t row, bool save) {
  if (move.dtype == DType::float32)
    return move_position<std::uint32_t>(move, position, row, save, 1);
  move_position<std::uint16_t>(move, position, row, save, move.dtype == DType::bfloat16 ? 2 : 1);
}

}  // namespace atl::compute
