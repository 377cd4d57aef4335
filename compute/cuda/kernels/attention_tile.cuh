#pragma once
// The parts of attention.cuh that compute: softmax, and a warp's share of a tile.

#include <algorithm>

#include "compute/cuda/kernels.hpp"
#include "compute/cuda/kernels/device.cuh"
#include "compute/cuda/plan/attention_plan.hpp"

namespace atl::compute::cuda {

/// Merges a split (m, l, o) into totals: total = total * of_total + split * of_split.
struct MergeFactors {
  float top;
  float of_total;
  float of_split;
};
/// `scale` turns scores into exponents of 2. A maximum is -infinity where a row saw no key, which a
/// window makes so.
__device__ inline MergeFactors merge_factors(float total_top, float split_top, float scale) {
  const float top = fmaxf(total_top, split_top);
  const float shift = top == -INFINITY ? 0.0F : top;
  return {top, exp2_fast((total_top - shift) * scale), exp2_fast((split_top - shift) * scale)};
}
__device__ inline float merged(float total, float split, const MergeFactors& factors) {
  return fmaf(total, factors.of_total, split * factors.of_split);
}
inline constexpr float log2_of_e = 1.4426950408889634F;
__device__ inline float score_scale(int head_dim) {
  return log2_of_e / sqrtf(static_cast<float>(head_dim));
}
__device__ inline float score_scale(const AttentionArgs& args) {
  return args.scale > 0 ? log2_of_e * args.scale : score_scale(args.kv.head_dim);
}
/// What a row's result is divided by, inverted: the sum of its weights, which a sink's logit joins
/// where it is not null.
__device__ inline float inverse_sum(float top, float sum, float scale, const float* sink) {
  if (sink == nullptr) return 1.0F / sum;
  const float of_keys = top * scale;
  const float of_sink = *sink * log2_of_e;
  const float highest = fmaxf(of_keys, of_sink);
  const float keep = exp2_fast(of_keys - highest);
  return keep / fmaf(sum, keep, exp2_fast(of_sink - highest));
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
  /// A block of keys (values) is copied in slices of at most 256 dimensions. Latents are keys of
  /// 576 and values of 512.
  static constexpr int slice = head_dim == latent_head_dim ? 192 : std::min(head_dim, 256);
  static constexpr int slices = head_dim / slice;
  static constexpr int value_slice = std::min(head_dim, 256);
  static constexpr int value_slices = head_dim / value_slice;
  static constexpr int key_tiles = key_block / 16 / columns;    ///< score tiles of one warp
  static constexpr int out_tiles = value_slice / 16 / columns;  ///< result tiles of warp and slice
  static constexpr int lanes_per_row = 2 * columns;             ///< that share a row's softmax
  // Rows in shared memory are padded so that the 16-byte pieces of a column lie in different banks.
  static constexpr int query_stride = head_dim + 8;
  static constexpr int slice_stride = std::max(slice, value_slice) + 8;
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
    int token[rows];  ///< of the tile's; -1 where there is nothing to compute
    int head[rows];
    unsigned bad[key_block / 32];  ///< keys of the block whose values clear_non_finite() cleared
  };
};

/// For a block of keys of which some rows see only a part: clears what is not finite in a slice of
/// its values, since a weight of 0 times that would spoil those rows too, and notes whose it was,
/// by which the rows that do see it are spoiled at the end. By all threads of the block; barriers
/// before and after are the caller's.
template <class V>
__device__ void clear_non_finite(typename V::Shared& shared, typename V::Type* values) {
  // What carries the magnitude of an element into its sign's place, in both halves of a word.
  constexpr std::uint32_t to_sign =
      std::is_same_v<typename V::Type, __nv_bfloat16> ? 0x00800080U : 0x04000400U;
  constexpr int per_row = V::value_slice / wide<typename V::Type>;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < key_block * per_row; i += V::threads) {
    const int key = i / per_row;
    auto* piece = reinterpret_cast<uint4*>(values + key * V::slice_stride) + i % per_row;
    std::uint32_t words[4] = {piece->x, piece->y, piece->z, piece->w};
    std::uint32_t bad = 0;
#pragma unroll
    for (std::uint32_t& word : words) {
      const std::uint32_t mine = ((word & 0x7fff7fffU) + to_sign) & 0x80008000U;
      bad |= mine;
      word &= ~((mine >> 15U) * 0xffffU);
    }
    if (bad == 0) continue;
    *piece = uint4{words[0], words[1], words[2], words[3]};
    atomicOr(&shared.bad[key / 32], 1U << static_cast<unsigned>(key % 32));
  }
}

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

/// Keys [low, end) of a block, of those that are in it.
struct SeenKeys {
  int low;
  int end;

  __device__ bool has(int key) const { return key >= low && key < end; }
  /// A bit for each.
  __device__ std::uint64_t bits() const {
    const auto below = [](int key) {
      return key >= key_block ? ~std::uint64_t{0}
                              : (std::uint64_t{1} << static_cast<unsigned>(key > 0 ? key : 0)) - 1;
    };
    return below(end) & ~below(low);
  }
};

/// Turns a row's 64 scores into weights; those of keys that it sees count. Lane `part` of `lanes`
/// takes every lanes-th chunk of four keys. Returns the factor for what came before.
template <int lanes, class T>
__device__ float soften(const float* scores, T* weights, int part, const SeenKeys& seen,
                        float scale, Softmax& state) {
  constexpr int chunks = 16 / lanes;
  float x[chunks][4];
  float top = state.top;
#pragma unroll
  for (int c = 0; c < chunks; ++c) {
    const int key = (part + c * lanes) * 4;
    load_floats(scores + key, x[c]);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (!seen.has(key + k)) x[c][k] = -INFINITY;
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

/// One warp's share of a tile: its place, its fragments, and the softmax of the row its lane helps.
template <class V>
struct Worker {
  using T = typename V::Type;
  using Sum = SumTile;
  using Left = LeftTile<T, nvcuda::wmma::row_major>;
  using Keys = RightTile<T, nvcuda::wmma::col_major>;
  using Values = RightTile<T, nvcuda::wmma::row_major>;

  typename V::Shared& shared;
  int column;     ///< which of the group's warps
  int first_row;  ///< of the group's 16
  int row;        ///< whose softmax this lane shares
  int part;       ///< which of the lanes that share it
  Softmax split;
  Softmax total;
  int element_row[Sum::num_elements];  ///< of the lane's elements, counted from first_row
  Sum scores[V::key_tiles];
  Sum out[V::value_slices][V::out_tiles];
  Sum totals[V::value_slices][V::out_tiles];
  bool spoiled = false;  ///< it sees a key whose value is not finite

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
    for (int s = 0; s < V::value_slices; ++s) {
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
      load_tile(left, q + k, V::query_stride);
#pragma unroll
      for (int t = 0; t < V::key_tiles; ++t) {
        Keys right;
        load_tile(right, mine + t * 16 * V::slice_stride + k, V::slice_stride);
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

  /// Softmax of this lane's row over a block of keys of which it sees some.
  __device__ void soften_row(const SeenKeys& seen, float scale) {
    const float factor =
        soften<V::lanes_per_row>(shared.scores + row * V::score_stride,
                                 shared.weights + row * V::score_stride, part, seen, scale, split);
    if (part == 0) shared.factor[row] = factor;
  }

  /// After clear_non_finite() of a slice of the block's values.
  __device__ void note_bad(const SeenKeys& seen) {
    const std::uint64_t bad = shared.bad[0] | (std::uint64_t{shared.bad[1]} << 32U);
    spoiled = spoiled || (bad & seen.bits()) != 0;
  }

  /// Multiplies the results so far by their rows' factors.
  __device__ void rescale() {
#pragma unroll
    for (int i = 0; i < Sum::num_elements; ++i) {
      const float factor = shared.factor[first_row + element_row[i]];
#pragma unroll
      for (int s = 0; s < V::value_slices; ++s) {
#pragma unroll
        for (int t = 0; t < V::out_tiles; ++t) out[s][t].x[i] *= factor;
      }
    }
  }

  /// out += P V for one slice of dimensions.
  __device__ void add_values(const T* values, int slice) {
    const T* p = shared.weights + first_row * V::score_stride;
    const T* mine = values + column * V::out_tiles * 16;
#pragma unroll
    for (int k = 0; k < key_block; k += 16) {
      Left left;
      load_tile(left, p + k, V::score_stride);
#pragma unroll
      for (int t = 0; t < V::out_tiles; ++t) {
        Values right;
        load_tile(right, mine + k * V::slice_stride + t * 16, V::slice_stride);
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
      for (int s = 0; s < V::value_slices; ++s) {
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
    for (int s = 0; s < V::value_slices; ++s) {
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
                 s * V::value_slice + (column * V::out_tiles + first) * 16 + i % pieces * 8,
                 values);
        }
        __syncwarp();
      }
    }
  }
};

}  // namespace atl::compute::cuda
