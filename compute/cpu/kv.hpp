#pragma once
// The CPU's KV cache, and its pages from and to a plain layout, for checkpoints.

#include <cstdint>
#include <span>
#include <vector>

#include "compute/backend.hpp"
#include "compute/cpu/kernels.hpp"
#include "compute/cpu/memory.hpp"
#include "compute/types.hpp"

namespace atl::compute {

KvLayout kv_layout_of(const BackendOptions& options);

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
  void* keys = nullptr;                 ///< [positions, kv_heads, head_dim]
  void* values = nullptr;               ///< the same
};

/// Copies the keys and values of `position` from the pages to row `row` (`save`), or back.
void move_kv_position(const KvMove& move, int position, std::int64_t row, bool save);

}  // namespace atl::compute
