#pragma once
// The CPU's KV cache, and its pages from and to a plain layout, for checkpoints.

#include <cstdint>
#include <span>
#include <vector>

#include "compute/backend.hpp"
#include "compute/cpu/memory.hpp"
#include "compute/types.hpp"

namespace atl::compute {

/// Keys are stored in panels of this many tokens; attention advances a panel at a time.
inline constexpr int panel_tokens = 64;

/// Layout of one layer's KV pages. A page holds, for each kv_head, its keys and then its values:
///   keys    [page_tokens / 64][head_dim / 2][64][2]  (T = bfloat16), or [..][head_dim][64]
///   values  [page_tokens][value_stride], value_stride = value_dim rounded up to 16, zero-padded
/// Lanes of a key vector are tokens, lanes of a value vector are dimensions: no horizontal sums.
/// Of latent attention a page holds rows [page_tokens][latent_stride], latents and rotated keys.
struct KvLayout {
  int num_heads = 0;     ///< of this rank, as
  int num_kv_heads = 0;  ///< those that it keeps
  int head_dim = 0;
  int value_stride = 0;
  int page_tokens = 0;
  int value_dim = 0;
  int latent_width = 0;   ///< 0: keys and values
  int latent_stride = 0;  ///< latent_width rounded up to 16, zero-padded

  std::int64_t keys_per_head() const { return std::int64_t{page_tokens} * head_dim; }
  std::int64_t head_elements() const {
    return std::int64_t{page_tokens} * (head_dim + value_stride);
  }
  std::int64_t page_elements() const {
    return latent_width > 0 ? std::int64_t{page_tokens} * latent_stride
                            : num_kv_heads * head_elements();
  }
};

KvLayout kv_layout_of(const BackendOptions& options, int layer);

/// The KV cache of all layers: [num_pages] pages each.
struct CpuKvCache {
  CpuKvCache() = default;
  CpuKvCache(const BackendOptions& options, HostArena& arena);
  std::vector<AlignedBuffer> layers;
};

/// One layer's pages of one sequence, and the plain rows beside them.
struct KvMove {
  KvLayout layout;
  DType dtype = DType::bfloat16;
  void* kv = nullptr;                   ///< the layer's pages
  std::span<const std::int32_t> pages;  ///< of the sequence
  void* keys = nullptr;                 ///< [positions, kv_heads, head_dim], or latents
  void* values = nullptr;               ///< [positions, kv_heads, value_dim], or nothing
};

/// Copies the keys and values of `position` from the pages to row `row` (`save`), or back.
void move_kv_position(const KvMove& move, int position, std::int64_t row, bool save);

}  // namespace atl::compute
