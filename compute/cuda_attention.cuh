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

#include <mma.h>

#include <algorithm>

#include "compute/cuda_attention_plan.hpp"
#include "compute/cuda_device.cuh"
#include "compute/cuda_kernels.hpp"

namespace atl::compute::cuda {

/// Merges a split (m, l, o) into totals: total = total * of_total + split * of_split.
struct MergeFactors {
  float top;
  float of_total;
  float of_split;
};
/// `scale` turns scores into exponents of 2. At most one of the maxima is -infinity.
__device__ inline MergeFactors merge_factors(float total_top, float split_top, float scale) {
  const float top = fmaxf(total_top, split_top);
  return {top, exp2_fast((total_top - top) * scale), exp2_fast((split_top - top) * scale)};
}
__device__ inline float merged(float total, float split, const MergeFactors& factors) {
  return fmaf(total, factors.of_total, split * factors.of_split);
}
__device__ inline float score_scale(int head_dim) {
  return 1.4426950408889634F / sqrtf(static_cast<float>(head_dim));
}

/// A variant of the kernel: element type, head_dim rounded up, matrix rows, warps per 16 rows, and
/// tiles of keys or values in the ring that copies run ahead in.
template <class T, int head_dim_, int rows_, int columns_, int stages_>
struct Variant {
  using Type = T;
  static constexpr int head_dim = head_dim_;
  static constexpr int rows = rows_;
  static constexpr int columns = columns_;
  static constexpr int stages = stages_;
  static constexpr int threads = rows / 16 * columns * warp_lanes;
  /// A block of keys (values) is copied in slices of at most 256 dimensions.
  static constexpr int slice = std::min(head_dim, 256);
  static constexpr int slices = head_dim / slice;
  static constexpr int key_tiles = key_block / 16 / columns;  ///< score tiles of one warp
  static constexpr int out_tiles = slice / 16 / columns;  ///< result tiles of one warp and slice
  static constexpr int lanes_per_row = 2 * columns;       ///< that share a row's softmax
  // Rows in shared memory are padded so that the 16-byte pieces of a column lie in different banks.
  static constexpr int query_stride = head_dim + 8;
  static constexpr int slice_stride = slice + 8;
  static constexpr int score_stride = key_block + 8;
  static constexpr int slice_elements = key_block * slice_stride;

  /// Shared memory of a block, in the order of its members.
  struct Shared {
    alignas(128) T queries[rows * query_stride];
    alignas(128) T ring[stages * slice_elements];
    alignas(128) float scores[rows * score_stride];  ///< at the end: results on their way out
    alignas(128) T weights[rows * score_stride];
    alignas(128) float factor[rows];
    float of_total[rows];
    float of_split[rows];
  };
};

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

/// Adds a row's weights in an order that does not depend on how many lanes share the row. Sixteen
/// chunks of four keys; chunks c and c + 8 first, then pairs of sums 4, 2 and 1 apart.
template <int lanes>
__device__ float sum_of_block(const float (&chunks)[16 / lanes]) {
  constexpr int held = 8 / lanes;
  float sums[held];
#pragma unroll
  for (int i = 0; i < held; ++i) sums[i] = chunks[i] + chunks[i + held];
#pragma unroll
  for (int distance = held / 2; distance > 0; distance /= 2) {
#pragma unroll
    for (int i = 0; i < distance; ++i) sums[i] += sums[i + distance];
  }
  float total = sums[0];
#pragma unroll
  for (int distance = lanes / 2; distance > 0; distance /= 2) {
    total += __shfl_xor_sync(all_lanes, total, distance);
  }
  return total;
}

/// Running softmax of one row, the same in all lanes that share it.
struct Softmax {
  float top = -INFINITY;
  float sum = 0;
};

/// Turns a row's 64 scores into weights; the first `valid` keys count. Lane `part` of `lanes` takes
/// every lanes-th chunk of four keys. Returns the factor for what came before.
template <int lanes, class T>
__device__ float soften(const float* scores, T* weights, int part, int valid, float scale,
                        Softmax& state) {
  constexpr int chunks = 16 / lanes;
  float x[chunks][4];
  float top = state.top;
#pragma unroll
  for (int c = 0; c < chunks; ++c) {
    const int key = (part + c * lanes) * 4;
    load_floats(scores + key, x[c]);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (key + k >= valid) x[c][k] = -INFINITY;
      top = fmaxf(top, x[c][k]);
    }
  }
#pragma unroll
  for (int distance = lanes / 2; distance > 0; distance /= 2) {
    top = fmaxf(top, __shfl_xor_sync(all_lanes, top, distance));
  }
  const float shift = top == -INFINITY ? 0.0F : top;  // no key yet
  const float factor = exp2_fast((state.top - shift) * scale);
  const float scaled_shift = shift * scale;
  float sums[chunks];
#pragma unroll
  for (int c = 0; c < chunks; ++c) {
    T rounded[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      rounded[k] = round_to<T>(exp2_fast(fmaf(x[c][k], scale, -scaled_shift)));
      x[c][k] = to_float(rounded[k]);
    }
    // The sum is of what is multiplied with the values, so that weights add up to 1.
    sums[c] = (x[c][0] + x[c][1]) + (x[c][2] + x[c][3]);
    const uint2 word{pack_word<T>(x[c]), pack_word<T>(x[c] + 2)};
    *reinterpret_cast<uint2*>(weights + (part + c * lanes) * 4) = word;
  }
  state.sum = fmaf(state.sum, factor, sum_of_block<lanes>(sums));
  state.top = top;
  return factor;
}

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

/// One warp's share of a tile: its place, its fragments, and the softmax of the row its lane helps.
template <class V>
struct Worker {
  using T = typename V::Type;
  using Sum = nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, float>;
  using Left =
      nvcuda::wmma::fragment<nvcuda::wmma::matrix_a, 16, 16, 16, T, nvcuda::wmma::row_major>;
  using Keys =
      nvcuda::wmma::fragment<nvcuda::wmma::matrix_b, 16, 16, 16, T, nvcuda::wmma::col_major>;
  using Values =
      nvcuda::wmma::fragment<nvcuda::wmma::matrix_b, 16, 16, 16, T, nvcuda::wmma::row_major>;

  typename V::Shared& shared;
  int column;     ///< which of the group's warps
  int first_row;  ///< of the group's 16
  int row;        ///< whose softmax this lane shares
  int part;       ///< which of the lanes that share it
  Softmax split;
  Softmax total;
  int element_row[Sum::num_elements];  ///< of the lane's elements, counted from first_row
  Sum scores[V::key_tiles];
  Sum out[V::slices][V::out_tiles];
  Sum totals[V::slices][V::out_tiles];

  __device__ explicit Worker(typename V::Shared& memory) : shared(memory) {
    const int warp = static_cast<int>(threadIdx.x) / warp_lanes;
    const int lane = static_cast<int>(threadIdx.x) % warp_lanes;
    column = warp % V::columns;
    first_row = warp / V::columns * 16;
    const int in_group = column * warp_lanes + lane;
    row = first_row + in_group / V::lanes_per_row;
    part = in_group % V::lanes_per_row;
    find_element_rows(lane);
    clear_scores();
    clear_out();
  }

  /// Which row each element of an accumulator belongs to is unspecified: loads a matrix that tells.
  __device__ void find_element_rows(int lane) {
    float* numbers = shared.scores + first_row * V::score_stride + column * 16;
    if (lane < 16) {
      for (int r = 0; r < 16; ++r) numbers[r * V::score_stride + lane] = static_cast<float>(r);
    }
    __syncwarp();
    Sum fragment;
    nvcuda::wmma::load_matrix_sync(fragment, numbers, V::score_stride, nvcuda::wmma::mem_row_major);
#pragma unroll
    for (int i = 0; i < Sum::num_elements; ++i) element_row[i] = static_cast<int>(fragment.x[i]);
    __syncwarp();
  }

  __device__ void clear_scores() {
#pragma unroll
    for (int t = 0; t < V::key_tiles; ++t) nvcuda::wmma::fill_fragment(scores[t], 0.0F);
  }
  __device__ void clear_out() {
#pragma unroll
    for (int s = 0; s < V::slices; ++s) {
#pragma unroll
      for (int t = 0; t < V::out_tiles; ++t) nvcuda::wmma::fill_fragment(out[s][t], 0.0F);
    }
  }

  /// scores += Q K' over one slice of dimensions.
  __device__ void add_scores(const T* keys, int slice) {
    const T* q = shared.queries + first_row * V::query_stride + slice * V::slice;
    const T* mine = keys + column * V::key_tiles * 16 * V::slice_stride;
#pragma unroll
    for (int k = 0; k < V::slice; k += 16) {
      Left left;
      nvcuda::wmma::load_matrix_sync(left, q + k, V::query_stride);
#pragma unroll
      for (int t = 0; t < V::key_tiles; ++t) {
        Keys right;
        nvcuda::wmma::load_matrix_sync(right, mine + t * 16 * V::slice_stride + k, V::slice_stride);
        nvcuda::wmma::mma_sync(scores[t], left, right, scores[t]);
      }
    }
  }

  __device__ void store_scores() {
    float* to = shared.scores + first_row * V::score_stride + column * V::key_tiles * 16;
#pragma unroll
    for (int t = 0; t < V::key_tiles; ++t) {
      nvcuda::wmma::store_matrix_sync(to + t * 16, scores[t], V::score_stride,
                                      nvcuda::wmma::mem_row_major);
    }
    clear_scores();
  }

  /// Softmax of this lane's row over a block of keys of which the first `valid` count.
  __device__ void soften_row(int valid, float scale) {
    const float factor =
        soften<V::lanes_per_row>(shared.scores + row * V::score_stride,
                                 shared.weights + row * V::score_stride, part, valid, scale, split);
    if (part == 0) shared.factor[row] = factor;
  }

  /// Multiplies the results so far by their rows' factors.
  __device__ void rescale() {
#pragma unroll
    for (int i = 0; i < Sum::num_elements; ++i) {
      const float factor = shared.factor[first_row + element_row[i]];
#pragma unroll
      for (int s = 0; s < V::slices; ++s) {
#pragma unroll
        for (int t = 0; t < V::out_tiles; ++t) out[s][t].x[i] *= factor;
      }
    }
  }

  /// out += P V for one slice of dimensions.
  template <int slice>
  __device__ void add_values(const T* values) {
    const T* p = shared.weights + first_row * V::score_stride;
    const T* mine = values + column * V::out_tiles * 16;
#pragma unroll
    for (int k = 0; k < key_block; k += 16) {
      Left left;
      nvcuda::wmma::load_matrix_sync(left, p + k, V::score_stride);
#pragma unroll
      for (int t = 0; t < V::out_tiles; ++t) {
        Values right;
        nvcuda::wmma::load_matrix_sync(right, mine + k * V::slice_stride + t * 16, V::slice_stride);
        nvcuda::wmma::mma_sync(out[slice][t], left, right, out[slice][t]);
      }
    }
  }

  /// First half of merging a split: the lanes that share a row settle its factors.
  __device__ void settle_split(bool first, float scale) {
    MergeFactors factors{split.top, 0.0F, 1.0F};
    if (first) {
      total = split;
    } else {
      factors = merge_factors(total.top, split.top, scale);
      total = {factors.top, merged(total.sum, split.sum, factors)};
    }
    split = Softmax{};
    if (part == 0) {
      shared.of_total[row] = factors.of_total;
      shared.of_split[row] = factors.of_split;
    }
  }
  /// Second half: merges the results and clears those of the split.
  __device__ void merge_split(bool first) {
#pragma unroll
    for (int i = 0; i < Sum::num_elements; ++i) {
      const int r = first_row + element_row[i];
      const MergeFactors factors{0, shared.of_total[r], shared.of_split[r]};
#pragma unroll
      for (int s = 0; s < V::slices; ++s) {
#pragma unroll
        for (int t = 0; t < V::out_tiles; ++t) {
          const float value = out[s][t].x[i];
          totals[s][t].x[i] = first ? value : merged(totals[s][t].x[i], value, factors);
        }
      }
    }
    clear_out();
  }

  /// Hands the totals out by pieces of a row: action(row, first column, eight values). The values
  /// pass through this warp's part of the scores.
  template <class Action>
  __device__ void for_pieces(Action&& action) {
    constexpr int staged = V::key_tiles;  // tiles of 16 columns that fit there
    constexpr int pieces = staged * 2;    // of eight values per row
    const int lane = static_cast<int>(threadIdx.x) % warp_lanes;
    float* stage = shared.scores + first_row * V::score_stride + column * staged * 16;
#pragma unroll
    for (int s = 0; s < V::slices; ++s) {
#pragma unroll
      for (int first = 0; first < V::out_tiles; first += staged) {
#pragma unroll
        for (int t = 0; t < staged; ++t) {
          nvcuda::wmma::store_matrix_sync(stage + t * 16, totals[s][first + t], V::score_stride,
                                          nvcuda::wmma::mem_row_major);
        }
        __syncwarp();
        for (int i = lane; i < 16 * pieces; i += warp_lanes) {
          float values[8];
          load_floats(stage + i / pieces * V::score_stride + i % pieces * 8, values);
          action(first_row + i / pieces,
                 s * V::slice + (column * V::out_tiles + first) * 16 + i % pieces * 8, values);
        }
        __syncwarp();
      }
    }
  }
};

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
