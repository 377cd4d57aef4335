#pragma once
// What attention does with a block of queries and a panel of keys and values, included once per
// instruction set (see simd.hpp for why all is anonymous).

#include <cstring>
#include <limits>

#include "compute/cpu/kernels.hpp"
#include "compute/cpu/kernels/kv_pages.hpp"
#include "compute/cpu/kernels/simd.hpp"

namespace atl::compute {
namespace {

// Registers of a block: block_queries x block_vectors accumulators.
constexpr int block_queries = 6;
constexpr int block_vectors = lanes == 16 ? 4 : 2;

constexpr std::int64_t line_bytes = 64;

/// The bytes that will be read after those which a loop reads now, fetched along with it: the
/// hardware follows one stream inside a page of 4 KiB, which is shorter than most of ours.
struct Ahead {
  const char* begin;

  /// Bytes [offset, offset + count).
  void fetch(std::int64_t offset, std::int64_t count) const {
#pragma GCC unroll 8
    for (std::int64_t i = 0; i < count; i += line_bytes) {
      __builtin_prefetch(begin + offset + i, 0, 3);
    }
  }
};
/// For panels that some other block of queries has fetched.
struct NothingAhead {
  void fetch(std::int64_t /*offset*/, std::int64_t /*count*/) const {}
};

// Queries as the score kernel reads them: float32, or pairs of bfloat16 for the dot product.
template <class T>
struct Query {
  using type = float;
};
#if defined(ATL_BF16_PAIRS)
template <>
struct Query<Bf16> {
  using type = Bf16;
};
#endif

/// One dimension of block_vectors vectors of keys; of bfloat16, number `i` of the pair at `key`.
template <class T>
inline void load_keys(const T* key, int i, Vec (&keys)[block_vectors]) {
#pragma GCC unroll 8
  for (int v = 0; v < block_vectors; ++v) {
    if constexpr (__is_same(T, Bf16)) {
      keys[v] = i % 2 == 0 ? load_even(key + v * 2 * lanes) : load_odd(key + v * 2 * lanes);
    } else {
      keys[v] = load(key + v * lanes);
    }
  }
}

/// scores[q][0..63] = q . keys of one panel; queries are `q_stride` apart, scores 64. Fetches as
/// many bytes as the panel has.
template <int Rows, class Next, class T>
inline void scores_of(const float* q, std::int64_t q_stride, const T* panel, int head_dim,
                      float* scores, Next next) {
  constexpr std::int64_t pair_bytes = block_vectors * lanes * 2 * sizeof(T);
  for (int t = 0; t < panel_tokens; t += block_vectors * lanes) {
    Vec acc[Rows][block_vectors];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < block_vectors; ++v) acc[r][v] = broadcast(0);
    }
    for (int pair = 0; pair < head_dim; pair += 2) {  // head_dim is even
      next.fetch(std::int64_t{t} * head_dim * sizeof(T) + pair / 2 * pair_bytes, pair_bytes);
#pragma GCC unroll 2
      for (int i = pair; i < pair + 2; ++i) {
        Vec keys[block_vectors];
        load_keys(panel + key_offset(panel, __is_same(T, Bf16) ? pair : i, t), i - pair, keys);
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) {
          const Vec x = broadcast(q[r * q_stride + i]);
#pragma GCC unroll 8
          for (int v = 0; v < block_vectors; ++v) acc[r][v] = fma(x, keys[v], acc[r][v]);
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < block_vectors; ++v) {
        store(scores + r * panel_tokens + t + v * lanes, acc[r][v]);
      }
    }
  }
}

#if defined(ATL_BF16_PAIRS)
/// The same with exact products of bfloat16 pairs, two multiply-adds per lane and instruction.
template <int Rows, class Next>
inline void scores_of(const Bf16* q, std::int64_t q_stride, const Bf16* panel, int head_dim,
                      float* scores, Next next) {
  Vec acc[Rows][4];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < 4; ++v) acc[r][v] = broadcast(0);
  }
  for (int i = 0; i < head_dim; i += 2) {
    next.fetch(std::int64_t{i} * (panel_tokens * 2), 4 * line_bytes);
    Pairs key[4];
#pragma GCC unroll 8
    for (int v = 0; v < 4; ++v) key[v] = load_pairs(panel + i * panel_tokens + v * 32);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const Pairs both = broadcast_pair(q + r * q_stride + i);
#pragma GCC unroll 8
      for (int v = 0; v < 4; ++v) acc[r][v] = dot(acc[r][v], both, key[v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < 4; ++v) store(scores + r * panel_tokens + v * 16, acc[r][v]);
  }
}
#endif

/// Softmax state of one query: running maximum, sums per lane, the factor for what came before.
struct Running {
  float* top;
  float* sums;  // [16]
  float factor;
};

/// Turns the scores of one panel into weights relative to the new maximum; keys [low, valid)
/// count, of which there is at least one.
inline void soften(float* scores, int low, int valid, float scale, Running& state) {
  const Vec lowest = broadcast(-std::numeric_limits<float>::infinity());
  // Without the keys that do not count.
  const auto counted = [&](int t, Vec values, Vec otherwise) {
    const Vec below = first_lanes(valid - t < lanes ? valid - t : lanes, values, otherwise);
    if (low <= t) return below;
    return first_lanes(low - t < lanes ? low - t : lanes, otherwise, below);
  };
  const int begin = low / lanes * lanes;
  Vec top = lowest;
  for (int t = begin; t < valid; t += lanes) top = max(top, counted(t, load(scores + t), lowest));
  const float panel_top = largest(top);
  const float before = *state.top;
  const float now = panel_top > before ? panel_top : before;
  *state.top = now;
  const Vec shift = broadcast(now);
  state.factor = now == before ? 1.0F : exp(broadcast((before - now) * scale))[0];
  Vec total = load(state.sums) * broadcast(state.factor);
  for (int t = begin; t < valid; t += lanes) {
    const Vec e = exp((load(scores + t) - shift) * broadcast(scale));
    const Vec weight = counted(t, e, broadcast(0));
    store(scores + t, weight);
    total = total + weight;
  }
  store(state.sums, total);
}

/// Keys of a panel that each query sees: [lows[q], limits[q]). Neither falls from a query to the
/// next.
template <int Rows>
struct Seen {
  int lows[Rows];
  int limits[Rows];
};

/// out[q][dims] = out * factor[q] + weights[q][keys that it sees] . values[.][dims], Vectors
/// vectors wide. Values that it does not see are not multiplied, since 0 times one that is not
/// finite would be NaN. Fetches as many bytes as it reads.
template <int Rows, int Vectors, class Next, class T>
inline void blend(const float* weights, const float* factors, const Seen<Rows>& seen,
                  const T* values, std::int64_t value_stride, float* out, std::int64_t out_stride,
                  Next next) {
  constexpr std::int64_t token_bytes = Vectors * lanes * sizeof(T);
  Vec acc[Rows][Vectors];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) {
      acc[r][v] = load(out + r * out_stride + v * lanes) * broadcast(factors[r]);
    }
  }
  const auto some = [&](int t) {  // only some of the queries see these
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      if (t < seen.lows[r] || t >= seen.limits[r]) continue;
      const Vec w = broadcast(weights[r * panel_tokens + t]);
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) {
        acc[r][v] = fma(w, load(values + t * value_stride + v * lanes), acc[r][v]);
      }
    }
  };
  int t = seen.lows[0];
  for (; t < seen.lows[Rows - 1] && t < seen.limits[Rows - 1]; ++t) some(t);
  for (; t < seen.limits[0]; ++t) {
    next.fetch(t * token_bytes, token_bytes);
    Vec value[Vectors];
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) value[v] = load(values + t * value_stride + v * lanes);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const Vec w = broadcast(weights[r * panel_tokens + t]);
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) acc[r][v] = fma(w, value[v], acc[r][v]);
    }
  }
  for (; t < seen.limits[Rows - 1]; ++t) some(t);
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) store(out + r * out_stride + v * lanes, acc[r][v]);
  }
}

}  // namespace
}  // namespace atl::compute
