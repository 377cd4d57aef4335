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
// nothing: the factor is then 1, or what it multiplies 0, and what is added is 0.

#include <algorithm>

#include "compute/cuda/kernels.hpp"
#include "compute/cuda/kernels/attention_tile.cuh"
#include "compute/cuda/kernels/device.cuh"
#include "compute/cuda/plan/attention_plan.hpp"

namespace atl::compute::cuda {

/// How a block's threads share out rows of `width` elements by 16-byte pieces: where the pieces of
/// a row divide the threads, each has a column of its own and takes every so many-th row.
template <class T, int width, int num_rows, int threads>
struct Pieces {
  static constexpr int per_row = width / wide<T>;
  static constexpr int count = num_rows * per_row / threads;  ///< of one thread
  static constexpr bool in_columns = threads % per_row == 0;
  static_assert(num_rows * per_row % threads == 0);

  static __device__ int row(int thread, int i) {
    return in_columns ? thread / per_row + i * (threads / per_row)
                      : (thread + i * threads) / per_row;
  }
  static __device__ int column(int thread, int i) {
    return (in_columns ? thread : thread + i * threads) % per_row * wide<T>;
  }
};

/// Copies slices of keys and values into the ring, in the order in which they are used: for each
/// block of 64 keys the slices of K, then those of V.
template <class V>
class Copier {
 public:
  using T = typename V::Type;

  __device__ Copier(const KvPages& kv, const std::int32_t* pages, int kv_head, bool wide_ok,
                    int first, int end, T* ring)
      : kv_(kv),
        wide_ok_(wide_ok),
        left_(end - first),
        token_(first % kv.page_tokens),
        ring_(ring) {
    pages_ = pages + first / kv.page_tokens;
    head_ = kv_head;
    next_page_ = *pages_;
  }

  /// Starts the next slice's copy, if there is one; a group of copies either way.
  __device__ void advance() {
    if (left_ > 0) {
      if (part_ == 0) enter_block();
      T* to = ring_ + slot_ * V::slice_elements;
      if (part_ < V::slices) {
        copy_slice<V::slice>(static_cast<const T*>(kv_.keys) + block_ * kv_.head_dim,
                             part_ * V::slice, kv_.head_dim, kv_.head_dim, to);
      } else {
        copy_slice<V::value_slice>(static_cast<const T*>(kv_.values) + block_ * kv_.value_stride(),
                                   (part_ - V::slices) * V::value_slice, kv_.values_dim(),
                                   kv_.value_stride(), to);
      }
      slot_ = slot_ + 1 == V::stages ? 0 : slot_ + 1;
      if (++part_ == V::slices + V::value_slices) {
        part_ = 0;
        left_ -= key_block;
      }
    }
    commit_copies();
  }

 private:
  /// Finds the next block's place; its page was looked up one block ahead, so that nobody waits.
  __device__ void enter_block() {
    block_ = (std::int64_t{next_page_} * kv_.num_kv_heads + head_) * kv_.page_tokens + token_;
    token_ += key_block;
    if (token_ == kv_.page_tokens) {
      token_ = 0;
      if (left_ > key_block) next_page_ = *++pages_;
    }
  }

  /// Columns from `column` on of rows of `d` elements, `stride` apart. Zeros stand for keys and
  /// dimensions that do not exist.
  template <int width>
  __device__ void copy_slice(const T* from, int column, int d, int stride, T* to) const {
    const int thread = static_cast<int>(threadIdx.x);
    if (wide_ok_) {
      using P = Pieces<T, width, key_block, V::threads>;
#pragma unroll
      for (int i = 0; i < P::count; ++i) {
        const int row = P::row(thread, i);
        const int c = P::column(thread, i);
        const bool exists = row < left_ && column + c < d;
        copy_async(to + row * V::slice_stride + c, exists ? from + row * stride + column + c : from,
                   exists);
      }
    } else {
#pragma unroll 1
      for (int i = thread; i < key_block * width; i += V::threads) {
        const int row = i / width;
        const int c = i % width;
        const bool exists = row < left_ && column + c < d;
        to[row * V::slice_stride + c] =
            exists ? from[row * stride + column + c] : round_to<T>(0.0F);
      }
    }
  }

  const KvPages& kv_;
  bool wide_ok_;
  int left_;   ///< keys from the block that is copied next to the end
  int token_;  ///< of that block in its page
  T* ring_;
  const std::int32_t* pages_;
  int head_;
  std::int64_t block_ = 0;  ///< the block's first token among those of all pages and heads
  std::int32_t next_page_;
  int part_ = 0;  ///< of the block: slices of K, then of V
  int slot_ = 0;
};

/// Says which token and query head each matrix row stands for; returns after a barrier. `heads`
/// query heads beside each other have room, from first_head on; only those before end_head exist.
template <class V>
__device__ void place_rows(typename V::Shared& shared, const AttentionTile& tile, int heads,
                           int first_head, int end_head) {
  for (int row = static_cast<int>(threadIdx.x); row < V::rows; row += V::threads) {
    const int token = row / heads;
    const int head = first_head + row % heads;
    shared.token[row] = token < tile.num_rows && head < end_head ? token : -1;
    shared.head[row] = head;
  }
  __syncthreads();
}

/// Starts copying the queries; rows and dimensions that do not exist become zeros.
template <class V>
__device__ void load_queries(const AttentionArgs& args, const AttentionTile& tile,
                             typename V::Shared& shared, bool wide_ok) {
  using T = typename V::Type;
  const int d = args.kv.head_dim;
  const T* q = static_cast<const T*>(args.qkv) + tile.first_row * args.qkv_stride;
  const int thread = static_cast<int>(threadIdx.x);
  if (wide_ok) {
    using P = Pieces<T, V::head_dim, V::rows, V::threads>;
#pragma unroll
    for (int i = 0; i < P::count; ++i) {
      const int row = P::row(thread, i);
      const int c = P::column(thread, i);
      const int token = shared.token[row];
      const bool exists = token >= 0 && c < d;
      const T* from = q + token * args.qkv_stride + shared.head[row] * d + c;
      copy_async(shared.queries + row * V::query_stride + c, exists ? from : q, exists);
    }
  } else {
#pragma unroll 1
    for (int i = thread; i < V::rows * V::head_dim; i += V::threads) {
      const int row = i / V::head_dim;
      const int c = i % V::head_dim;
      const int token = shared.token[row];
      const bool exists = token >= 0 && c < d;
      shared.queries[row * V::query_stride + c] =
          exists ? q[token * args.qkv_stride + shared.head[row] * d + c] : round_to<T>(0.0F);
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
__device__ void write_results(const AttentionArgs& args, const AttentionTile& tile,
                              Worker<V>& worker, bool wide_ok) {
  using T = typename V::Type;
  typename V::Shared& shared = worker.shared;
  if (worker.part == 0) {
    const bool exists = args.sinks != nullptr && shared.token[worker.row] >= 0;
    const float* sink = exists ? args.sinks + shared.head[worker.row] : nullptr;
    shared.factor[worker.row] =
        inverse_sum(worker.total.top, worker.total.sum, score_scale(args), sink);
  }
  sync_group<V>();
  const int d = args.kv.values_dim();
  T* out = static_cast<T*>(args.out) + tile.first_row * args.out_row();
  worker.for_pieces([&](int row, int column, float(&values)[8]) {
    const int token = shared.token[row];
    if (column >= d || token < 0) return;
    const float inverse = shared.factor[row];
    T* to = out + token * args.out_row() + shared.head[row] * d + column;
    // + 0 turns a negative zero, whose sign depends on the block, into a positive one.
#pragma unroll
    for (int k = 0; k < 8; ++k) values[k] = values[k] * inverse + 0.0F;
    if (wide_ok) {
      store_raw(to, to_raw<T>(values));
    } else {
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        if (column + k < d) to[k] = round_to<T>(values[k]);
      }
    }
  });
}

/// Results of a single split with its maximum and sum, to the workspace.
template <class V>
__device__ void write_partials(const AttentionArgs& args, const AttentionTile& tile,
                               Worker<V>& worker, int head_floats) {
  typename V::Shared& shared = worker.shared;
  const int d = args.kv.values_dim();
  float* rows = args.workspace + std::int64_t{tile.partial} * args.num_heads * head_floats;
  const auto place = [&](int row, int token) {
    return rows + std::int64_t{token * args.num_heads + shared.head[row]} * head_floats;
  };
  worker.for_pieces([&](int row, int column, float(&values)[8]) {
    const int token = shared.token[row];
    if (token < 0) return;
    float* to = place(row, token) + column;
#pragma unroll
    for (int k = 0; k < 8; k += 4) {  // rows are padded to four values
      if (column + k < d) {
        *reinterpret_cast<float4*>(to + k) =
            float4{values[k], values[k + 1], values[k + 2], values[k + 3]};
      }
    }
  });
  const int token = shared.token[worker.row];
  if (worker.part == 0 && token >= 0) {
    float* to = place(worker.row, token) + head_floats - 4;
    to[0] = worker.total.top;
    to[1] = worker.total.sum;
  }
}

template <class V>
__global__ void __launch_bounds__(V::threads, 1)
    attention_kernel(AttentionArgs args, const AttentionTile* tiles, int groups_per_kv_head,
                     int head_floats, bool wide_ok) {
  using T = typename V::Type;
  auto& shared = *dynamic_shared<typename V::Shared>();
  const int kv_head = static_cast<int>(blockIdx.y) / groups_per_kv_head;
  const int sub_group = static_cast<int>(blockIdx.y) % groups_per_kv_head;
  const int heads = min(args.groups.most, V::rows);
  const int first_head = args.groups.first(kv_head) + sub_group * heads;
  const int end_head = args.groups.end(kv_head, args.num_heads);
  if (first_head >= end_head) return;  // of a group with fewer heads
  const AttentionTile tile = tiles[blockIdx.x];
  place_rows<V>(shared, tile, heads, first_head, end_head);
  const int end = tile.first_key + tile.num_keys;

  Copier<V> copier(args.kv, args.map.pages + std::int64_t{tile.sequence} * args.map.max_pages,
                   kv_head, wide_ok, tile.first_key, end, shared.ring);
  load_queries<V>(args, tile, shared, wide_ok);
  for (int i = 0; i < V::stages - 1; ++i) copier.advance();  // the first with the queries

  Worker<V> worker(shared);
  const float scale = score_scale(args);
  // Rows that do not exist count as the last token's.
  const int last_token = tile.num_rows - 1;
  const int row_position = tile.first_position + min(worker.row / heads, last_token);
  const int last_position =
      tile.first_position + min((worker.first_row + 15) / heads, last_token);  // of the group's
  const bool any_rows = worker.first_row < tile.num_rows * heads;
  // The first key that a position sees.
  const auto low_of = [&](int position) {
    return args.window > 0 ? max(position + 1 - args.window, 0) : 0;
  };
  const int row_low = low_of(row_position);
  const int group_low = low_of(tile.first_position + min(worker.first_row / heads, last_token));
  const int tile_low = low_of(tile.first_position + last_token);
  int slot = 0;
  const auto next_slice = [&] {
    wait_copies<V::stages - 2>();
    __syncthreads();  // the slice is there, and nobody reads the one that is overwritten next
    copier.advance();
    T* slice = shared.ring + slot * V::slice_elements;
    slot = slot + 1 == V::stages ? 0 : slot + 1;
    return slice;
  };
  const auto next_values = [&](int start, const SeenKeys& seen) {
    T* values = next_slice();
    const bool all_seen =
        tile.first_position + 1 >= min(start + key_block, end) && tile_low <= start;
    if (!all_seen) {  // by all rows
      clear_non_finite<V>(shared, values);
      __syncthreads();
      worker.note_bad(seen);
    }
    return values;
  };
  // Splits begin at fixed positions; a window lets the first one begin later.
  for (int split = tile.first_key; split < end; split = (split / split_keys + 1) * split_keys) {
    const int split_end = min((split / split_keys + 1) * split_keys, end);
    for (int start = split; start < split_end; start += key_block) {
      const bool live = any_rows && start <= last_position && start + key_block > group_low;
      const SeenKeys seen{row_low - start, row_position + 1 - start};
#pragma unroll
      for (int s = 0; s < V::slices; ++s) {
        const T* keys = next_slice();
        // Between the barriers before and after it nobody looks.
        if (s == 0 && threadIdx.x < key_block / 32) shared.bad[threadIdx.x] = 0;
        if (live) worker.add_scores(keys, s);
      }
      if (live) worker.store_scores();
      sync_group<V>();
      if (live) worker.soften_row(seen, scale);
#pragma unroll
      for (int s = 0; s < V::value_slices; ++s) {
        const T* values = next_values(start, seen);
        if (!live) continue;
        if (s == 0) worker.rescale();
        worker.add_values(values, s);
      }
    }
    const bool first = split == tile.first_key;
    worker.settle_split(first, scale);
    sync_group<V>();
    worker.merge_split(first);
  }
  if (worker.spoiled) worker.total.sum = NAN;
  if (tile.partial >= 0) {
    write_partials(args, tile, worker, head_floats);
  } else {
    write_results(args, tile, worker, wide_ok);
  }
}

template <class V>
void launch_attention(cudaStream_t stream, const AttentionArgs& args, const AttentionTile* tiles,
                      int num_tiles) {
  const int most = args.groups.most;
  const int groups = divide_up(most, std::min(most, V::rows));
  using T = typename V::Type;
  const auto whole = [](std::int64_t elements) { return elements % wide<T> == 0; };
  const bool wide_ok = whole(args.kv.head_dim) && whole(args.kv.values_dim()) &&
                       whole(args.qkv_stride) && whole(args.out_row()) &&
                       rows_are_aligned(0, args.qkv, args.out, args.kv.keys, args.kv.values);
  launch(
      stream, "attention", &attention_kernel<V>,
      dim3(static_cast<unsigned>(num_tiles), static_cast<unsigned>(args.kv.num_kv_heads * groups)),
      V::threads, sizeof(typename V::Shared), args, tiles, groups,
      partial_floats_per_head(args.kv.values_dim()), wide_ok);
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
  } else if (d <= 512) {
    launch_tiles<T, 512>(stream, args);
  } else {
    launch_tiles<T, latent_head_dim>(stream, args);
  }
}

}  // namespace atl::compute::cuda
