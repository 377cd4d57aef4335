#pragma once
// A warpgroup's share of a tile of attention_wgmma.cuh: its rows, their softmax and their result.

#include "compute/cuda/kernels/attention_tile.cuh"
#include "compute/cuda/kernels/wgmma_blocks.cuh"

namespace atl::compute::cuda {

/// Running softmax of a thread's two rows, the same in the four lanes that share them.
struct SoftRows {
  float top[2] = {-INFINITY, -INFINITY};
  float sum[2] = {};
};

/// The largest or the sum of what the four lanes of a row hold.
__device__ inline float max_of_lanes(float x) {
  x = fmaxf(x, __shfl_xor_sync(all_lanes, x, 1));
  return fmaxf(x, __shfl_xor_sync(all_lanes, x, 2));
}
__device__ inline float sum_of_lanes(float x) {
  x += __shfl_xor_sync(all_lanes, x, 1);
  return x + __shfl_xor_sync(all_lanes, x, 2);
}

/// Which of a block's keys count: for row r the first valid[r], unless `all` do for all rows.
struct Seen {
  bool all;
  int valid[2];
};

/// Turns a thread's scores of a block of keys (row r has 4 j + 2 r and the next, for columns 8 j
/// on) into weights, rounded as T. `factor` is for what came before.
template <class T>
__device__ inline void soften_rows(float (&scores)[32], const Seen& seen, float scale,
                                   SoftRows& state, float (&factor)[2]) {
  const int column = static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float top = state.top[r];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        float& x = scores[4 * j + 2 * r + k];
        if (!seen.all && 8 * j + column + k >= seen.valid[r]) x = -INFINITY;
        top = fmaxf(top, x);
      }
    }
    top = max_of_lanes(top);
    const float shift = top == -INFINITY ? 0.0F : top;  // no key yet
    factor[r] = exp2_fast((state.top[r] - shift) * scale);
    const float scaled_shift = shift * scale;
    float sums[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      float* pair = scores + 4 * j + 2 * r;
#pragma unroll
      for (int k = 0; k < 2; ++k) pair[k] = exp2_fast(fmaf(pair[k], scale, -scaled_shift));
      unpack<T>(pack_word<T>(pair), pair);
      // The sum is of what is multiplied with the values, so that weights add up to 1.
      sums[j] = pair[0] + pair[1];
    }
    const float sum =
        ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
    state.sum[r] = fmaf(state.sum[r], factor[r], sum_of_lanes(sum));
    state.top[r] = top;
  }
}

/// Which rows of which tile a kernel's block computes.
struct TileRows {
  AttentionTile tile;
  int kv_head;
  int heads;       ///< query heads beside each other
  int first_head;  ///< of them
  int end_head;    ///< heads from here on do not exist

  /// Token of the tile and query head of a row; token -1 where there is nothing to compute.
  struct Row {
    int token;
    int head;
  };
  __device__ Row place_of(int row) const {
    const int token = row / heads;
    const int head = first_head + row % heads;
    return {token < tile.num_rows && head < end_head ? token : -1, head};
  }
  /// Rows that do not exist count as the last token's.
  __device__ int position_of(int row) const {
    return tile.first_position + min(row / heads, tile.num_rows - 1);
  }
};

template <class V>
struct GroupWorker {
  using T = typename V::Type;
  static constexpr int num_sums = V::columns / 2;  ///< of a thread's part of the result

  const AttentionArgs& args;
  typename V::Shared& shared;
  int thread;        ///< in the warpgroup
  int first_column;  ///< of the result
  int first_row;     ///< of the warpgroup's, in the tile
  int first_position;
  int num_blocks;   ///< of keys, of which one of the rows sees something
  int position[2];  ///< of the thread's two rows
  float scale;
  SoftRows split;
  SoftRows total;
  bool fresh = true;       ///< `out` holds nothing
  bool has_total = false;  ///< there are totals of splits before
  std::uint32_t queries[V::queries_held ? V::head_dim / product_depth : 1][4];
  std::uint32_t weights[4][4];
  float scores[32];
  float out[num_sums];  ///< of the split; at the end of all
  float held_totals[V::totals == Place::registers ? num_sums : 1];

  __device__ GroupWorker(const AttentionArgs& arguments, typename V::Shared& memory,
                         const TileRows& rows)
      : args(arguments), shared(memory), scale(score_scale(arguments)) {
    const AttentionTile& tile = rows.tile;
    // Alike in a warp, which the compiler cannot see otherwise.
    const int group = __shfl_sync(all_lanes, static_cast<int>(threadIdx.x) / group_threads, 0);
    thread = static_cast<int>(threadIdx.x) % group_threads;
    first_column = V::column_groups == 1 ? 0 : group % V::column_groups * V::columns;
    first_row = V::rows == group_rows ? 0 : group / V::column_groups * group_rows;
    first_position = rows.position_of(first_row);
    const int last = rows.position_of(first_row + group_rows - 1) - tile.first_key;
    const bool any = first_row < tile.num_rows * rows.heads && last >= 0;
    num_blocks = any ? min(last, tile.num_keys - 1) / key_block + 1 : 0;
#pragma unroll
    for (int r = 0; r < 2; ++r) position[r] = rows.position_of(own_row(r));
    if (num_blocks > 0) return;
#pragma unroll
    for (float& x : out) x = 0;
  }

  /// The thread's row r, 0 or 1, in the tile.
  __device__ int own_row(int r) const {
    return first_row + sum_row(thread, 2 * r);
  }

  /// Takes queries into registers, as the left side of products.
  __device__ void hold_queries(const TileRows& rows, const T* q) {
    const int d = args.kv.head_dim;
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const TileRows::Row place = rows.place_of(first_row + left_row(thread, w));
      const T* from = q + place.token * args.qkv_stride + place.head * d;
#pragma unroll
      for (int k = 0; k < V::head_dim / product_depth; ++k) {
        const int column = k * product_depth + left_depth(thread, w);
        const bool exists = place.token >= 0 && column < d;  // head_dim is even
        queries[k][w] = exists ? *reinterpret_cast<const std::uint32_t*>(from + column) : 0U;
      }
    }
  }

  /// Slices of a block in shared memory.
  using Slices = const T* const (&)[V::slices];

  /// scores = Q K', enqueued as a group of products.
  __device__ void start_scores(Slices keys) {
    constexpr int per_strip = line_elements / product_depth;
    constexpr int per_slice = V::slice / product_depth;
    const auto along = [](int k, int lines) {
      return static_cast<unsigned>(k / per_strip * lines * line_bytes + k % per_strip * 32);
    };
    begin_products();
#pragma unroll
    for (int k = 0; k < V::head_dim / product_depth; ++k) {
      const std::uint64_t right =
          moved(describe_tiles(keys[k / per_slice], access_bytes), along(k % per_slice, key_block));
      if constexpr (V::queries_held) {
        multiply<T, Lines::columns>(scores, queries[k], right, k > 0);
      } else {
        const std::uint64_t left =
            describe_tiles(shared.queries + first_row * line_elements, access_bytes);
        multiply<T, Lines::columns>(scores, moved(left, along(k, V::rows)), right, k > 0);
      }
    }
    commit_products();
  }

  /// out += P V, enqueued as a group of products.
  __device__ void start_values(Slices values) {
    const T* own =
        V::slices > 1 ? values[first_column / V::slice] : values[0] + first_column * key_block;
    begin_products();
    const std::uint64_t right = describe_tiles(own, V::strip_bytes);
#pragma unroll
    for (int k = 0; k < key_block / product_depth; ++k) {
      multiply<T, Lines::depth>(out, weights[k], moved(right, k * product_depth * line_bytes),
                                k > 0 || !fresh);
    }
    commit_products();
    fresh = false;
  }

  __device__ Seen seen_of(int start) const {
    return {start + key_block <= first_position + 1,
            {position[0] + 1 - start, position[1] + 1 - start}};
  }

  /// Scores and weights of the first block, which begins at position `start`.
  __device__ void first_block(Slices keys, int start) {
    start_scores(keys);
    wait_products<0>();
    settle(scores);
    float factor[2];
    soften_rows<T>(scores, seen_of(start), scale, split, factor);
    take_weights();
  }

  /// Takes the weights, which are where scores were, as the left side of the next products.
  __device__ void take_weights() {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        weights[j / 2][j % 2 * 2 + r] = pack_word<T>(scores + 4 * j + 2 * r);
      }
    }
  }

  /// Values of a block, and meanwhile scores and weights of the next, which begins at `next`; and
  /// what else there is to do while products run.
  template <class Meanwhile>
  __device__ void block_and_next(Slices values, Slices next_keys, int next, bool ends_split,
                                 Meanwhile&& meanwhile) {
    settle(weights);
    start_scores(next_keys);
    start_values(values);
    meanwhile();
    wait_products<1>();
    soften_next(next, ends_split);
  }

  /// The same in two parts, between which the values may come.
  template <class Meanwhile>
  __device__ void next_scores(Slices next_keys, Meanwhile&& meanwhile) {
    start_scores(next_keys);
    meanwhile();
    wait_products<0>();
  }
  template <class Meanwhile>
  __device__ void block_after_scores(Slices values, int next, bool ends_split,
                                     Meanwhile&& meanwhile) {
    settle(weights);
    start_values(values);
    meanwhile();
    soften_next(next, ends_split);
  }

  /// Weights of the next block, while values are being multiplied; then what follows from both.
  __device__ void soften_next(int next, bool ends_split) {
    settle(scores);
    const SoftRows done = split;
    if (ends_split) split = SoftRows{};
    float factor[2];
    soften_rows<T>(scores, seen_of(next), scale, split, factor);
    // Sums are not negative: this never happens. But a store that depends on them keeps the wait
    // behind the softmax; without it the compiler waits first, and nothing overlaps.
    if (split.sum[0] < 0 || split.sum[1] < 0) shared.first_bad = 0;
    wait_products<0>();
    settle(out);
    if (ends_split) {
      merge_split(done, true);
    } else if (__any_sync(all_lanes, factor[0] != 1 || factor[1] != 1)) {
#pragma unroll
      for (int i = 0; i < num_sums; ++i) out[i] *= factor[i / 2 % 2];
    }
    take_weights();  // not before: the products read those before
  }

  /// Values of the last block of which one of the rows sees something.
  template <class Meanwhile>
  __device__ void last_block(Slices values, Meanwhile&& meanwhile) {
    start_values(values);
    meanwhile();
    wait_products<0>();
    settle(out);
    merge_split(split, false);
  }

  /// Where this thread keeps four totals, from out's i-th on, if not in registers.
  __device__ float* total_at(int i) {
    float* all = shared.totals;
    if constexpr (V::totals == Place::workspace) {
      all = args.totals + std::int64_t{blockIdx.x} * V::rows * V::head_dim;
    }
    return all + (i / 4 * V::threads + static_cast<int>(threadIdx.x)) * 4;
  }

  /// out = the totals so far and a split, merged; kept where another split follows.
  __device__ void merge_split(const SoftRows& done, bool goes_on) {
    MergeFactors factors[2] = {};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (has_total) {
        factors[r] = merge_factors(total.top[r], done.top[r], scale);
        total.top[r] = factors[r].top;
        total.sum[r] = merged(total.sum[r], done.sum[r], factors[r]);
      } else {
        total.top[r] = done.top[r];
        total.sum[r] = done.sum[r];
      }
    }
    constexpr int at_once = 32;  // of which the registers have room for others' totals
#pragma unroll
    for (int i = 0; i < num_sums; i += at_once) {
      if (has_total) merge_totals<at_once>(i, factors);
      if (goes_on) keep_totals<at_once>(i);
      if constexpr (V::totals != Place::registers) __syncwarp();  // no loads before that
    }
    has_total = true;
    fresh = true;
  }
  template <int count>
  __device__ void merge_totals(int first, const MergeFactors (&factors)[2]) {
#pragma unroll
    for (int i = first; i < first + count; i += 4) {
      float before[4];
      if constexpr (V::totals == Place::registers) {
#pragma unroll
        for (int k = 0; k < 4; ++k) before[k] = held_totals[i + k];
      } else {
        load_floats(total_at(i), before);
      }
#pragma unroll
      for (int k = 0; k < 4; ++k) out[i + k] = merged(before[k], out[i + k], factors[k / 2]);
    }
  }
  template <int count>
  __device__ void keep_totals(int first) {
#pragma unroll
    for (int i = first; i < first + count; i += 4) {
      const float now[4] = {out[i], out[i + 1], out[i + 2], out[i + 3]};
      if constexpr (V::totals == Place::registers) {
#pragma unroll
        for (int k = 0; k < 4; ++k) held_totals[i + k] = now[k];
      } else {
        store_floats(total_at(i), now);
      }
    }
  }

  /// Results of the rows, normalised, to `to` (the tile's first row of args.out).
  __device__ void write_results(const TileRows& rows, T* to) const {
    const int d = args.kv.head_dim;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const auto [token, head] = rows.place_of(own_row(r));
      if (token < 0) continue;
      const float inverse = 1.0F / total.sum[r];
      T* row = to + token * args.out_row() + head * d;
#pragma unroll
      for (int i = 2 * r; i < num_sums; i += 4) {
        const int column = first_column + sum_column(thread, i);
        // + 0 turns a negative zero, whose sign depends on the block, into a positive one.
        const float pair[2] = {out[i] * inverse + 0.0F, out[i + 1] * inverse + 0.0F};
        if (column < d) *reinterpret_cast<std::uint32_t*>(row + column) = pack_word<T>(pair);
      }
    }
  }

  /// Results of a single split with its maximum and sum, to `to` (the tile's first workspace row).
  __device__ void write_partials(const TileRows& rows, float* to, int head_floats) const {
    const int d = args.kv.head_dim;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const auto [token, head] = rows.place_of(own_row(r));
      if (token < 0) continue;
      float* row = to + std::int64_t{token * args.num_heads + head} * head_floats;
#pragma unroll
      for (int i = 2 * r; i < num_sums; i += 4) {
        const int column = first_column + sum_column(thread, i);
        if (column < d) *reinterpret_cast<float2*>(row + column) = {out[i], out[i + 1]};
      }
      if (first_column == 0 && thread % 4 == 0) {
        row[head_floats - 4] = total.top[r];
        row[head_floats - 3] = total.sum[r];
      }
    }
  }
};

}  // namespace atl::compute::cuda
