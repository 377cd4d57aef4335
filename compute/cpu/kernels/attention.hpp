#pragma once
// Attention, included once per instruction set.
//
// Attention goes through the keys a panel of 64 at a time, in order of position, with an online
// softmax. Each query's operations and their order depend on its own position only, never on which
// other queries share its block: a decoded token and the same token in a prefill agree bit by bit.

#include <cmath>
#include <limits>

#include "compute/cpu/kernels.hpp"
#include "compute/cpu/kernels/kv_pages.hpp"
#include "compute/cpu/kernels/simd.hpp"

namespace atl::compute {
namespace {

// Registers of a block: block_queries x block_vectors accumulators.
constexpr int block_queries = 6;
constexpr int block_vectors = lanes == 16 ? 4 : 2;

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

/// scores[q][0..63] = q . keys of one panel; queries are `q_stride` apart, scores 64.
template <int Rows, class T>
inline void scores_of(const float* q, std::int64_t q_stride, const T* panel, int head_dim,
                      float* scores) {
  for (int t = 0; t < panel_tokens; t += block_vectors * lanes) {
    Vec acc[Rows][block_vectors];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < block_vectors; ++v) acc[r][v] = broadcast(0);
    }
    for (int pair = 0; pair < head_dim; pair += 2) {  // head_dim is even
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
template <int Rows>
inline void scores_of(const Bf16* q, std::int64_t q_stride, const Bf16* panel, int head_dim,
                      float* scores) {
  Vec acc[Rows][4];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < 4; ++v) acc[r][v] = broadcast(0);
  }
  for (int i = 0; i < head_dim; i += 2) {
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

/// Turns the scores of one panel into weights relative to the new maximum; `valid` >= 1 keys
/// count.
inline void soften(float* scores, int valid, float scale, Running& state) {
  const Vec lowest = broadcast(-std::numeric_limits<float>::infinity());
  Vec top = lowest;
  for (int t = 0; t < valid; t += lanes) {
    const int count = valid - t < lanes ? valid - t : lanes;
    top = max(top, first_lanes(count, load(scores + t), lowest));
  }
  const float panel_top = largest(top);
  const float before = *state.top;
  const float now = panel_top > before ? panel_top : before;
  *state.top = now;
  const Vec shift = broadcast(now);
  state.factor = now == before ? 1.0F : exp(broadcast((before - now) * scale))[0];
  Vec total = load(state.sums) * broadcast(state.factor);
  for (int t = 0; t < valid; t += lanes) {
    const int count = valid - t < lanes ? valid - t : lanes;
    const Vec e = exp((load(scores + t) - shift) * broadcast(scale));
    const Vec weight = first_lanes(count, e, broadcast(0));
    store(scores + t, weight);
    total = total + weight;
  }
  store(state.sums, total);
}

/// out[q][dims] = out * factor[q] + weights[q][0..limits[q]) . values[.][dims], Vectors vectors
/// wide. A query's limit is at least that of the one before; values beyond it are not multiplied,
/// since 0 times one that is not finite would be NaN.
template <int Rows, int Vectors, class T>
inline void blend(const float* weights, const float* factors, const int* limits, const T* values,
                  std::int64_t value_stride, float* out, std::int64_t out_stride) {
  Vec acc[Rows][Vectors];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) {
      acc[r][v] = load(out + r * out_stride + v * lanes) * broadcast(factors[r]);
    }
  }
  int t = 0;
  for (; t < limits[0]; ++t) {
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
  for (; t < limits[Rows - 1]; ++t) {  // only some of the queries see these
#pragma GCC unroll 8
    for (int r = 1; r < Rows; ++r) {
      if (t >= limits[r]) continue;
      const Vec w = broadcast(weights[r * panel_tokens + t]);
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) {
        acc[r][v] = fma(w, load(values + t * value_stride + v * lanes), acc[r][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) store(out + r * out_stride + v * lanes, acc[r][v]);
  }
}

/// One tile's state in the scratch memory of attend().
template <class T>
struct AttendTile {
  const AttendArgs& args;
  int group;
  std::int64_t q_stride;  // elements of Query<T>::type
  typename Query<T>::type* q;
  float* out;
  float* sums;
  float* top;
  float* scores;  // [block_queries][64]
  float scale;
};

/// Queries [first, first + Rows) of the tile against one panel of keys that starts at `start`.
template <int Rows, class T>
void attend_block(const AttendTile<T>& tile, int first, int start, const T* keys, const T* values) {
  const AttendArgs& args = tile.args;
  const KvLayout& layout = args.layout;
  scores_of<Rows>(tile.q + first * tile.q_stride, tile.q_stride, keys, layout.head_dim,
                  tile.scores);
  float factors[Rows];
  int limits[Rows];  // keys of the panel that a query sees
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
    const int limit = args.first_position + (first + r) / tile.group + 1 - start;
    limits[r] = limit < panel_tokens ? limit : panel_tokens;
    Running state{tile.top + first + r, tile.sums + (first + r) * 16, 1.0F};
    soften(tile.scores + r * panel_tokens, limits[r], tile.scale, state);
    factors[r] = state.factor;
  }
  const int stride = layout.value_stride;
  float* out = tile.out + std::int64_t{first} * stride;
  int i = 0;
  for (; i + block_vectors * lanes <= stride; i += block_vectors * lanes) {
    blend<Rows, block_vectors>(tile.scores, factors, limits, values + i, stride, out + i, stride);
  }
  for (; i < stride; i += lanes) {
    blend<Rows, 1>(tile.scores, factors, limits, values + i, stride, out + i, stride);
  }
}

template <class T>
void attend_blocks(const AttendTile<T>& tile, int first, int count, int start, const T* keys,
                   const T* values) {
  for (; count >= block_queries; first += block_queries, count -= block_queries) {
    attend_block<block_queries>(tile, first, start, keys, values);
  }
  switch (count) {
    case 5:
      return attend_block<5>(tile, first, start, keys, values);
    case 4:
      return attend_block<4>(tile, first, start, keys, values);
    case 3:
      return attend_block<3>(tile, first, start, keys, values);
    case 2:
      return attend_block<2>(tile, first, start, keys, values);
    case 1:
      return attend_block<1>(tile, first, start, keys, values);
    default:
      return;
  }
}

inline void load_query(const float* q, float* to, int d) {
  std::memcpy(to, q, static_cast<std::size_t>(d) * sizeof(float));
}
template <class T>
void load_query(const T* q, T* to, int d) {
  std::memcpy(to, q, static_cast<std::size_t>(d) * sizeof(T));
}
template <class T>
void load_query(const T* q, float* to, int d) {
  for (int i = 0; i < d; i += lanes) store(to + i, load(q + i, d - i), d - i);
}

template <class T>
void attend(const AttendArgs& args) {
  const KvLayout& layout = args.layout;
  const int d = layout.head_dim;
  const int group = layout.num_heads / layout.num_kv_heads;
  const int n = args.num_rows * group;
  const int stride = layout.value_stride;
  AttendTile<T> tile{args,    group,   (d + 15) / 16 * 16,
                     nullptr, nullptr, nullptr,
                     nullptr, nullptr, 1.0F / std::sqrt(static_cast<float>(d))};
  float* scratch = args.scratch;
  tile.q = reinterpret_cast<typename Query<T>::type*>(scratch);
  tile.out = scratch + n * tile.q_stride;
  tile.sums = tile.out + std::int64_t{n} * stride;
  tile.scores = tile.sums + n * 16;
  tile.top = tile.scores + 8 * panel_tokens;
  for (int i = 0; i < n; ++i) {
    const int head = args.kv_head * group + i % group;
    const T* q = static_cast<const T*>(args.qkv) + i / group * args.qkv_stride + head * d;
    load_query(q, tile.q + i * tile.q_stride, d);
    tile.top[i] = -std::numeric_limits<float>::infinity();
  }
  std::memset(tile.out, 0, static_cast<std::size_t>(n) * stride * sizeof(float));
  std::memset(tile.sums, 0, static_cast<std::size_t>(n) * 16 * sizeof(float));

  const int last = args.first_position + args.num_rows - 1;
  for (int start = 0; start <= last; start += panel_tokens) {
    const T* head =
        head_of<T>(layout, args.kv, args.pages[start / layout.page_tokens], args.kv_head);
    const int token = start % layout.page_tokens;
    const int hidden_rows = start > args.first_position ? start - args.first_position : 0;
    attend_blocks(tile, hidden_rows * group, n - hidden_rows * group, start,
                  head + std::int64_t{token} * d,
                  head + layout.keys_per_head() + std::int64_t{token} * stride);
  }
  for (int i = 0; i < n; ++i) {
    const int at = args.kv_head * group + i % group;
    T* to = static_cast<T*>(args.out) + (std::int64_t{i / group} * layout.num_heads + at) * d;
    const Vec inverse = broadcast(1.0F / sum(load(tile.sums + i * 16)));
    for (int j = 0; j < d; j += lanes) {
      // + 0 turns a negative zero, whose sign depends on the block, into a positive one.
      const Vec result = load(tile.out + std::int64_t{i} * stride + j) * inverse + broadcast(0);
      store(to + j, result, d - j);
    }
  }
}

}  // namespace
}  // namespace atl::compute
