#pragma once
// Attention of one tile on tensor cores; included by one .cu file per element type.
//
// A block of threads takes the query heads of one kv head for a tile of rows: up to `rows` matrix
// rows (one query head of one token each) against blocks of 64 keys. Sixteen rows belong to a group
// of `columns` warps, which share out the keys of a score block and the columns of the result. For
// each block of keys:
//   scores   S = Q K'          tensor cores, then through shared memory (element order is unknown)
//   softmax  running maximum m and sum l; P = e^((S - m) scale), rounded to the element type
//   result   O = O e^(m_old - m) + P V         tensor cores, O in registers
// After each split of 512 keys O, m and l are merged into totals and start afresh.
//
// A row's operations and their order do not depend on its place, on the other rows of the tile or
// on the variant of the kernel (wide or narrow): products of other rows never enter its sums, sums
// over keys follow one tree (see sum_of_block), and blocks in which a row has no keys change
// nothing: the factor is then 1 and what is added is 0.

#include <algorithm>

#include "compute/cuda_attention_plan.hpp"
#include "compute/cuda_attention_tile.cuh"
#include "compute/cuda_device.cuh"
#include "compute/cuda_kernels.hpp"

namespace atl::compute::cuda {

/// Copies slices of keys and values into the ring, in the order in which they are used: for each
/// block of 64 keys the slices of K, then those of V.
template <class V>
struct Copier {
  using T = typename V::Type;
  const KvPages& kv;
  const std::int32_t* pages;
  T* ring;
  int kv_head;
  int end;       ///< first position that is not read
  bool wide_ok;  ///< rows allow 16-byte accesses
  int start;     ///< first position of the block that is copied next
  std::int32_t page;
  std::int32_t next_page;  ///< loaded one block ahead, so that nobody waits for it
  int part = 0;            ///< of the block: slices of K, then of V
  int slot = 0;

  __device__ std::int32_t page_of(int position) const {
    return position < end ? pages[position / kv.page_tokens] : 0;
  }

  /// Starts the next slice's copy, if there is one; a group of copies either way.
  __device__ void advance() {
    if (start < end) copy();
    commit_copies();
  }

  __device__ void copy() {
    if (part == 0) {
      page = next_page;
      next_page = page_of(start + key_block);
    }
    const bool of_keys = part < V::slices;
    const int column = (of_keys ? part : part - V::slices) * V::slice;
    const std::int64_t at = ((std::int64_t{page} * kv.num_kv_heads + kv_head) * kv.page_tokens +
                             start % kv.page_tokens) *
                            kv.head_dim;
    const T* from = static_cast<const T*>(of_keys ? kv.keys : kv.values) + at;
    copy_slice(from, column, ring + slot * V::slice_elements);
    slot = slot + 1 == V::stages ? 0 : slot + 1;
    if (++part == 2 * V::slices) {
      part = 0;
      start += key_block;
    }
  }

  /// Zeros stand for keys and dimensions that do not exist.
  __device__ void copy_slice(const T* from, int column, T* to) {
    const int valid = end - start;
    const int thread = static_cast<int>(threadIdx.x);
    if (wide_ok) {
      constexpr int pieces = V::slice / wide<T>;
#pragma unroll 4
      for (int i = thread; i < key_block * pieces; i += V::threads) {
        const int row = i / pieces;
        const int c = i % pieces * wide<T>;
        const bool exists = row < valid && column + c < kv.head_dim;
        copy_async(to + row * V::slice_stride + c,
                   exists ? from + row * kv.head_dim + column + c : from, exists);
      }
    } else {
      for (int i = thread; i < key_block * V::slice; i += V::threads) {
        const int row = i / V::slice;
        const int c = i % V::slice;
        const bool exists = row < valid && column + c < kv.head_dim;
        to[row * V::slice_stride + c] =
            exists ? from[row * kv.head_dim + column + c] : round_to<T>(0.0F);
      }
    }
  }
};

/// What a block knows about its rows.
struct TileRows {
  AttentionTile tile;
  int heads;       ///< query heads per token that the tile's matrices have room for
  int live_heads;  ///< of these, those that exist
  int first_head;

  __device__ int token(int row) const { return row / heads; }
  __device__ int head(int row) const { return first_head + row % heads; }
  __device__ bool exists(int row) const {
    return row / heads < tile.num_rows && row % heads < live_heads;
  }
  __device__ int position(int row) const {
    const int t = min(row / heads, tile.num_rows - 1);
    return tile.first_position + t;
  }
};

template <class V>
__device__ void load_queries(const AttentionArgs& args, const TileRows& rows,
                             typename V::Type* queries, bool wide_ok) {
  using T = typename V::Type;
  const int d = args.kv.head_dim;
  const T* q = static_cast<const T*>(args.qkv);
  const auto from = [&](int row) {
    return q + (rows.tile.first_row + rows.token(row)) * args.qkv_stride +
           std::int64_t{rows.head(row)} * d;
  };
  if (wide_ok) {
    constexpr int pieces = V::head_dim / wide<T>;
    for (int i = static_cast<int>(threadIdx.x); i < V::rows * pieces; i += V::threads) {
      const int row = i / pieces;
      const int c = i % pieces * wide<T>;
      const bool exists = c < d && rows.exists(row);
      copy_async(queries + row * V::query_stride + c, exists ? from(row) + c : q, exists);
    }
  } else {
    for (int i = static_cast<int>(threadIdx.x); i < V::rows * V::head_dim; i += V::threads) {
      const int row = i / V::head_dim;
      const int c = i % V::head_dim;
      const bool exists = c < d && rows.exists(row);
      queries[row * V::query_stride + c] = exists ? from(row)[c] : round_to<T>(0.0F);
    }
  }
}

/// Barrier of the warps that share 16 rows.
template <class V>
__device__ inline void sync_group() {
  if constexpr (V::columns == 1) {
    __syncwarp();
  } else {
    __syncthreads();
  }
}

/// Results of the worker's rows, normalised, to `out`.
template <class V>
__device__ void write_results(const AttentionArgs& args, const TileRows& rows, Worker<V>& worker,
                              bool wide_ok) {
  using T = typename V::Type;
  if (worker.part == 0) worker.shared.factor[worker.row] = 1.0F / worker.total.sum;
  sync_group<V>();
  const int d = args.kv.head_dim;
  worker.for_pieces([&](int row, int column, float(&values)[8]) {
    if (column >= d || !rows.exists(row)) return;
    const float inverse = worker.shared.factor[row];
    T* to =
        static_cast<T*>(args.out) +
        (std::int64_t{rows.tile.first_row + rows.token(row)} * args.num_heads + rows.head(row)) *
            d +
        column;
    // + 0 turns a negative zero, whose sign depends on the block, into a positive one.
#pragma unroll
    for (int k = 0; k < 8; ++k) values[k] = values[k] * inverse + 0.0F;
    if (wide_ok) {
      store_raw(to, to_raw<T>(values));
    } else {
      for (int k = 0; k < 8; ++k) {
        if (column + k < d) to[k] = round_to<T>(values[k]);
      }
    }
  });
}

/// Results of a single split with its maximum and sum, to the workspace.
template <class V>
__device__ void write_partials(const AttentionArgs& args, const TileRows& rows, Worker<V>& worker,
                               int head_floats) {
  const int d = args.kv.head_dim;
  const auto place = [&](int row) {
    return args.workspace +
           (std::int64_t{rows.tile.partial + rows.token(row)} * args.num_heads + rows.head(row)) *
               head_floats;
  };
  worker.for_pieces([&](int row, int column, float(&values)[8]) {
    if (!rows.exists(row)) return;
    float* to = place(row) + column;
#pragma unroll
    for (int k = 0; k < 8; k += 4) {  // rows are padded to four values
      if (column + k < d) {
        *reinterpret_cast<float4*>(to + k) =
            float4{values[k], values[k + 1], values[k + 2], values[k + 3]};
      }
    }
  });
  if (worker.part == 0 && rows.exists(worker.row)) {
    float* to = place(worker.row) + head_floats - 4;
    to[0] = worker.total.top;
    to[1] = worker.total.sum;
  }
}

template <class V>
__global__ void __launch_bounds__(V::threads, 1)
    attention_kernel(AttentionArgs args, const AttentionTile* tiles, int groups_per_kv_head,
                     int head_floats) {
  using T = typename V::Type;
  auto& shared = *dynamic_shared<typename V::Shared>();
  const int kv_head = static_cast<int>(blockIdx.y) / groups_per_kv_head;
  const int sub_group = static_cast<int>(blockIdx.y) % groups_per_kv_head;
  const int group = args.num_heads / args.kv.num_kv_heads;
  TileRows rows{};
  rows.tile = tiles[blockIdx.x];
  rows.heads = min(group, V::rows);
  rows.live_heads = min(rows.heads, group - sub_group * rows.heads);
  rows.first_head = kv_head * group + sub_group * rows.heads;
  const AttentionTile& tile = rows.tile;
  const int end = tile.first_key + tile.num_keys;
  const bool wide_ok = args.kv.head_dim % wide<T> == 0;  // and pointers are aligned: see launch

  Copier<V> copier{args.kv,
                   args.map.pages + std::int64_t{tile.sequence} * args.map.max_pages,
                   shared.ring,
                   kv_head,
                   end,
                   wide_ok,
                   tile.first_key,
                   0,
                   0};
  copier.next_page = copier.page_of(tile.first_key);
  load_queries<V>(args, rows, shared.queries, wide_ok);
  for (int i = 0; i < V::stages - 1; ++i) copier.advance();  // the first with the queries

  Worker<V> worker(shared);
  const float scale = score_scale(args.kv.head_dim);
  const int row_position = rows.position(worker.row);
  const int last_position = rows.position(worker.first_row + 15);  // of the group's rows
  const bool any_rows = worker.first_row < tile.num_rows * rows.heads;
  int slot = 0;
  const auto next_slice = [&] {
    wait_copies<V::stages - 2>();
    __syncthreads();  // the slice is there, and nobody reads the one that is overwritten next
    copier.advance();
    const T* slice = shared.ring + slot * V::slice_elements;
    slot = slot + 1 == V::stages ? 0 : slot + 1;
    return slice;
  };
  bool first_split = true;
  for (int start = tile.first_key; start < end; start += key_block) {
    const bool live = any_rows && start <= last_position;
#pragma unroll
    for (int s = 0; s < V::slices; ++s) {
      const T* keys = next_slice();
      if (live) worker.add_scores(keys, s);
    }
    if (live) worker.store_scores();
    sync_group<V>();
    if (live) worker.soften_row(row_position + 1 - start, scale);
    {
      const T* values = next_slice();
      if (live) {
        worker.rescale();
        worker.template add_values<0>(values);
      }
    }
    if constexpr (V::slices > 1) {
      const T* values = next_slice();
      if (live) worker.template add_values<1>(values);
    }
    const int next = start + key_block;
    if (next >= end || next % split_keys == 0) {
      worker.settle_split(first_split, scale);
      sync_group<V>();
      worker.merge_split(first_split);
      first_split = false;
    }
  }
  if (tile.partial >= 0) {
    write_partials(args, rows, worker, head_floats);
  } else {
    write_results(args, rows, worker, wide_ok);
  }
}

template <class V>
void launch_attention(cudaStream_t stream, const AttentionArgs& args, const AttentionTile* tiles,
                      int num_tiles) {
  const int group = args.num_heads / args.kv.num_kv_heads;
  const int groups = divide_up(group, std::min(group, V::rows));
  launch(
      stream, "attention", &attention_kernel<V>,
      dim3(static_cast<unsigned>(num_tiles), static_cast<unsigned>(args.kv.num_kv_heads * groups)),
      V::threads, sizeof(typename V::Shared), args, tiles, groups,
      partial_floats_per_head(args.kv.head_dim));
}

template <class T, int head_dim>
void launch_tiles(cudaStream_t stream, const AttentionArgs& args) {
  // About 64 result registers per thread and as many for totals, whatever the head_dim.
  constexpr int columns = head_dim <= 128 ? 1 : head_dim / 128;
  launch_attention<Variant<T, head_dim, wide_rows(head_dim), columns, 3>>(stream, args, args.tiles,
                                                                          args.num_wide);
  launch_attention<Variant<T, head_dim, narrow_rows, 4, 4>>(
      stream, args, args.tiles + args.num_wide, args.num_narrow);
}

/// Tiles of both kinds for elements of type T; defined in one file per type.
template <class T>
void attention_tiles(cudaStream_t stream, const AttentionArgs& args) {
  const int d = args.kv.head_dim;
  if (d <= 64) {
    launch_tiles<T, 64>(stream, args);
  } else if (d <= 128) {
    launch_tiles<T, 128>(stream, args);
  } else if (d <= 256) {
    launch_tiles<T, 256>(stream, args);
  } else {
    launch_tiles<T, 512>(stream, args);
  }
}

}  // namespace atl::compute::cuda
