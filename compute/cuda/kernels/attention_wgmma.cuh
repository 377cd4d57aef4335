#pragma once
// Attention of one tile on Hopper's tensor cores (wgmma.cuh); included by one .cu file per element
// type. The scheme is attention.cuh's: blocks of 64 keys, splits of 512 merged in order, so that a
// row has the same bits alone or among others. They are not the bits of that kernel: sums run in
// other orders.
//
// A warpgroup has 64 rows (all of them even where fewer exist: decode takes the same products) and
// 64 to 256 columns of their result. Scores stay in registers, and become the left side of the
// product with the values there. While a block's values are multiplied, the softmax of the next
// block runs, whose scores were multiplied before.

#include "compute/cuda/kernels/wgmma_worker.cuh"
#include "compute/cuda/wgmma.hpp"

namespace atl::compute::cuda {

/// Starts copying the queries to shared memory; rows and dimensions that do not exist become zeros.
template <class V>
__device__ void copy_queries(const AttentionArgs& args, const TileRows& rows,
                             typename V::Shared& shared, const typename V::Type* q) {
  using T = typename V::Type;
  using P = LinePieces<T, V::head_dim, V::rows, V::threads>;
  const int d = args.kv.head_dim;
  const int column = static_cast<int>(threadIdx.x) % P::per_line * wide<T>;
#pragma unroll 4
  for (int i = 0; i < P::count; ++i) {
    const int row = static_cast<int>(threadIdx.x) / P::per_line + i * P::line_step;
    const auto [token, head] = rows.place_of(row);
    const bool exists = token >= 0 && column < d;
    copy_piece(shared.queries + tile_offset(row, column, V::rows),
               exists ? q + token * args.qkv_stride + head * d + column : q, exists);
  }
}

/// Waits until all but the newest `Pending` groups of copies are there for products, and nobody
/// reads what was there before.
template <int Pending>
__device__ inline void wait_for_slices() {
  wait_copies<Pending>();
  fence_for_products();
  __syncthreads();
}

/// Clears what must not be multiplied in the values of the block at `start`, where some rows of the
/// tile do not see all of it.
template <class V, int n>
__device__ inline void clear_values(const AttentionTile& tile, typename V::Shared& shared,
                                    const int (&slots)[n], int start) {
  const int end = tile.first_key + tile.num_keys;
  if (tile.first_position + 1 >= min(start + key_block, end)) return;
#pragma unroll
  for (int i = 0; i < n; ++i) {
    clear_bad_values<typename V::Type, V::slice_elements>(
        shared.ring + slots[i] * V::slice_elements, start, V::threads, &shared.first_bad);
  }
  fence_for_products();
  __syncthreads();
}

inline constexpr int blocks_per_split = split_keys / key_block;

/// All blocks of keys of a tile, by all threads; a slot of the ring has a block.
template <class V>
__device__ void attend_blocks(const AttentionTile& tile, typename V::Shared& shared,
                              BlockCopier<V>& copier, GroupWorker<V>& worker) {
  using T = typename V::Type;
  constexpr int ahead = V::stages / 2 - 1;  // steps whose copies are under way
  const int num_blocks = (tile.num_keys + key_block - 1) / key_block;
  copier.begin();
  for (int i = 0; i < ahead; ++i) copier.advance_step();
  wait_for_slices<ahead>();
  const auto slice = [&](int slot) -> const T* { return shared.ring + slot * V::slice_elements; };
  if (worker.num_blocks > 0) worker.first_block({slice(0)}, tile.first_key);
  int slot = 1;
  for (int block = 0; block < num_blocks; ++block) {
    const int start = tile.first_key + block * key_block;
    wait_for_slices<ahead - 1>();
    const int of_values = slot + 1 == V::stages ? 0 : slot + 1;
    clear_values<V, 1>(tile, shared, {of_values}, start);
    const auto copy_ahead = [&] { copier.advance_step(); };
    if (block + 1 < worker.num_blocks) {
      worker.block_and_next({slice(of_values)}, {slice(slot)}, start + key_block,
                            (block + 1) % blocks_per_split == 0, copy_ahead);
    } else if (block + 1 == worker.num_blocks) {
      worker.last_block({slice(of_values)}, copy_ahead);
    } else {
      copy_ahead();
    }
    slot = slot + 1 == V::stages ? 1 : slot + 2;
  }
}

/// The same where a block is two slices, of which the ring has room for five: keys make room for
/// the next while values are multiplied.
template <class V>
__device__ void attend_halves(const AttentionTile& tile, typename V::Shared& shared,
                              BlockCopier<V>& copier, GroupWorker<V>& worker) {
  using T = typename V::Type;
  const int num_blocks = (tile.num_keys + key_block - 1) / key_block;
  copier.begin();
  for (int i = 2; i < V::stages; ++i) copier.advance_slice();
  wait_for_slices<3>();
  const auto after = [](int slot, int n) { return (slot + n) % V::stages; };
  const auto slice = [&](int slot) -> const T* { return shared.ring + slot * V::slice_elements; };
  const auto copy_ahead = [&] {
    copier.advance_slice();
    copier.advance_slice();
  };
  if (worker.num_blocks > 0) worker.first_block({slice(0), slice(1)}, tile.first_key);
  int slot = 2;
  for (int block = 0; block < num_blocks; ++block) {
    const int start = tile.first_key + block * key_block;
    const bool goes_on = block + 1 < worker.num_blocks;
    wait_for_slices<1>();  // the next keys
    if (goes_on) {
      worker.next_scores({slice(slot), slice(after(slot, 1))}, copy_ahead);
    } else {
      copy_ahead();
    }
    wait_for_slices<1>();  // the values
    const int of_values[2] = {after(slot, 2), after(slot, 3)};
    clear_values<V, 2>(tile, shared, of_values, start);
    if (goes_on) {
      worker.block_after_scores({slice(of_values[0]), slice(of_values[1])}, start + key_block,
                                (block + 1) % blocks_per_split == 0, copy_ahead);
    } else if (block + 1 == worker.num_blocks) {
      worker.last_block({slice(of_values[0]), slice(of_values[1])}, copy_ahead);
    } else {
      copy_ahead();
    }
    slot = after(slot, 4);
  }
}

/// Work of a launch: each tile for each group of query heads that a block takes.
struct GroupWork {
  const AttentionTile* tiles;
  int num_tiles;
  int groups_per_kv_head;
  int num_items;  ///< tiles times groups
  int head_floats;
};

/// Which rows an item of work is of; false where there are none, of a group with fewer heads.
template <class V>
__device__ inline bool find_rows(const AttentionArgs& args, const GroupWork& work, int item,
                                 TileRows& rows) {
  const int group = item / work.num_tiles;
  const int kv_head = group / work.groups_per_kv_head;
  rows.kv_head = kv_head;
  rows.heads = min(args.groups.most, V::rows);
  rows.first_head = args.groups.first(kv_head) + group % work.groups_per_kv_head * rows.heads;
  rows.end_head = args.groups.end(kv_head, args.num_heads);
  rows.tile = work.tiles[item % work.num_tiles];
  return rows.first_head < rows.end_head;
}

template <class V>
__device__ void attend_item(const AttentionArgs& args, const GroupWork& work, int item,
                            typename V::Shared& shared) {
  using T = typename V::Type;
  TileRows rows;
  if (!find_rows<V>(args, work, item, rows)) return;
  const AttentionTile& tile = rows.tile;
  if (threadIdx.x == 0) shared.first_bad = no_position;  // seen by others after a barrier
  const T* q = static_cast<const T*>(args.qkv) + tile.first_row * args.qkv_stride;
  if constexpr (!V::queries_held) copy_queries<V>(args, rows, shared, q);
  BlockCopier<V> copier(args.kv, args.map.pages + std::int64_t{tile.sequence} * args.map.max_pages,
                        rows.kv_head, tile.first_key, tile.first_key + tile.num_keys, shared.ring);
  GroupWorker<V> worker(args, shared, rows);
  if constexpr (V::queries_held) worker.hold_queries(rows, q);
  if constexpr (V::slices > 1) {
    attend_halves<V>(tile, shared, copier, worker);
  } else {
    attend_blocks<V>(tile, shared, copier, worker);
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (shared.first_bad <= worker.position[r]) worker.total.sum[r] = NAN;
  }
  find_rows<V>(args, work, item, rows);  // again: registers were for other things
  const std::int64_t heads = args.num_heads;
  if (tile.partial >= 0) {
    worker.write_partials(rows, args.workspace + tile.partial * heads * work.head_floats,
                          work.head_floats);
  } else {
    worker.write_results(rows, static_cast<T*>(args.out) + tile.first_row * args.out_row());
  }
}

template <class V>
__global__ void __launch_bounds__(V::threads, 1)
    group_attention_kernel(AttentionArgs args, GroupWork work) {
  if constexpr (has_wgmma()) {
    auto& shared = *tiles_in_shared<typename V::Shared>();
    if constexpr (V::totals == Place::workspace) {  // as many blocks as it has room for
      for (int item = static_cast<int>(blockIdx.x); item < work.num_items;
           item += static_cast<int>(gridDim.x)) {
        attend_item<V>(args, work, item, shared);
        __syncthreads();  // nobody reads shared memory of this item any more
      }
    } else {
      attend_item<V>(args, work, static_cast<int>(blockIdx.x), shared);
    }
  }
}

template <class V>
void launch_group_attention(cudaStream_t stream, const AttentionArgs& args,
                            const AttentionTile* tiles, int num_tiles) {
  static_assert(sizeof(typename V::Shared) <= 227 * 1024);
  const int most = args.groups.most;
  const int groups = divide_up(most, std::min(most, V::rows));
  const int items = num_tiles * args.kv.num_kv_heads * groups;
  const bool limited = V::totals == Place::workspace;
  const int blocks = limited ? std::min(items, most_blocks_with_totals) : items;
  launch(stream, "attention", &group_attention_kernel<V>, dim3(static_cast<unsigned>(blocks)),
         V::threads, sizeof(typename V::Shared), args,
         GroupWork{tiles, num_tiles, groups, items, partial_floats_per_head(args.kv.head_dim)});
}

/// The wide tiles by one variant of the kernel, the narrow ones by another.
template <class Wide, class Narrow>
void launch_group_tiles(cudaStream_t stream, const AttentionArgs& args) {
  launch_group_attention<Wide>(stream, args, args.tiles, args.num_wide);
  launch_group_attention<Narrow>(stream, args, args.tiles + args.num_wide, args.num_narrow);
}

/// What attention_tiles() of attention.cuh is, for head dims that wgmma_attends(); defined in one
/// file per type.
template <class T>
void attention_group_tiles(cudaStream_t stream, const AttentionArgs& args) {
  constexpr Place registers = Place::registers;
  constexpr Place shared = Place::shared;
  const int d = args.kv.head_dim;
  if (d <= 64) {
    launch_group_tiles<GroupVariant<T, 64, 2, 1, 6, registers, registers>,
                       GroupVariant<T, 64, 1, 1, 6, registers, registers>>(stream, args);
  } else if (d <= 128) {
    launch_group_tiles<GroupVariant<T, 128, 2, 1, 6, registers, shared>,
                       GroupVariant<T, 128, 1, 1, 4, registers, shared>>(stream, args);
  } else if (d <= 256) {
    using Both = GroupVariant<T, 256, 1, 2, 4, shared, shared>;
    launch_group_tiles<Both, Both>(stream, args);
  } else {
    using Both = GroupVariant<T, 512, 1, 2, 5, shared, Place::workspace>;
    launch_group_tiles<Both, Both>(stream, args);
  }
}

}  // namespace atl::compute::cuda
