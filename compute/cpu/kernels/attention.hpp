#pragma once
// Attention, included once per instruction set.
//
// Keys are cut into splits of 512 at fixed positions. Attention goes through a split's keys a panel
// of 64 at a time, in order of position, with an online softmax, and then merges the splits in
// order. Each query's operations and their order depend on its own position only, never on which
// other queries share its block, nor on whether the same thread did all splits: a decoded token and
// the same token in a prefill agree bit by bit.

#include <cmath>
#include <limits>
#include <type_traits>

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
/// since 0 times one that is not finite would be NaN. Fetches as many bytes as it reads.
template <int Rows, int Vectors, class Next, class T>
inline void blend(const float* weights, const float* factors, const int* limits, const T* values,
                  std::int64_t value_stride, float* out, std::int64_t out_stride, Next next) {
  constexpr std::int64_t token_bytes = Vectors * lanes * sizeof(T);
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

/// Softmax of n queries over some of their keys, before it is divided by its sums: [n] each.
struct SplitState {
  float* out;   // [value_stride], weights times values
  float* sums;  // [16], by lane
  float* top;   // the largest score

  SplitState(float* memory, int n, int stride)
      : out(memory), sums(out + std::int64_t{n} * stride), top(sums + std::int64_t{n} * 16) {}

  void clear(int n, int stride) const {
    std::memset(out, 0, static_cast<std::size_t>(n) * stride * sizeof(float));
    std::memset(sums, 0, static_cast<std::size_t>(n) * 16 * sizeof(float));
    for (int i = 0; i < n; ++i) top[i] = -std::numeric_limits<float>::infinity();
  }
};

/// What attend() works on.
template <class T>
struct QueryTile {
  const AttendArgs& args;
  int group;
  int n;                  // queries
  std::int64_t q_stride;  // elements of Query<T>::type
  typename Query<T>::type* q;
  float* scores;  // [block_queries][64]
  float scale;
};

/// The keys and values of 64 positions from `start` on.
template <class T>
struct Panel {
  int start;
  const T* keys;
  const T* values;

  Panel(const AttendArgs& args, int from) : start(from) {
    const KvLayout& layout = args.layout;
    const std::int64_t token = start % layout.page_tokens;
    keys = head_of<T>(layout, args.kv, args.pages[start / layout.page_tokens], args.kv_head);
    values = keys + layout.keys_per_head() + token * layout.value_stride;
    keys += token * layout.head_dim;
  }
};

/// What is fetched while scores are made and while values are blended, as many bytes as these read.
template <class T>
struct Fetches {
  const T* with_scores;
  const T* with_values;

  /// 16 KiB ahead, which L1 holds beside what is read: the next panel, or half a panel.
  Fetches(const Panel<T>& panel, const Panel<T>& next, int head_dim) {
    const bool whole = panel_tokens * head_dim * sizeof(T) <= 8192;
    with_scores = whole ? next.keys : panel.values;
    with_values = whole ? next.values : next.keys;
  }
};

/// Queries [first, first + Rows) of the tile against one panel; `Fetch` for the first of a tile.
template <int Rows, bool Fetch, class T>
void attend_block(const QueryTile<T>& tile, const SplitState& state, int first,
                  const Panel<T>& panel, const Fetches<T>& fetches) {
  using Next = std::conditional_t<Fetch, Ahead, NothingAhead>;
  const auto ahead = [](const T* at) {
    if constexpr (Fetch) {
      return Ahead{reinterpret_cast<const char*>(at)};
    } else {
      return NothingAhead{};
    }
  };
  const AttendArgs& args = tile.args;
  const KvLayout& layout = args.layout;
  scores_of<Rows, Next>(tile.q + first * tile.q_stride, tile.q_stride, panel.keys, layout.head_dim,
                        tile.scores, ahead(fetches.with_scores));
  float factors[Rows];
  int limits[Rows];  // keys of the panel that a query sees
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
    const int limit = args.first_position + (first + r) / tile.group + 1 - panel.start;
    limits[r] = limit < panel_tokens ? limit : panel_tokens;
    Running running{state.top + first + r, state.sums + (first + r) * 16, 1.0F};
    soften(tile.scores + r * panel_tokens, limits[r], tile.scale, running);
    factors[r] = running.factor;
  }
  const int stride = layout.value_stride;
  float* out = state.out + std::int64_t{first} * stride;
  int i = 0;
  for (; i + block_vectors * lanes <= stride; i += block_vectors * lanes) {
    blend<Rows, block_vectors, Next>(tile.scores, factors, limits, panel.values + i, stride,
                                     out + i, stride,
                                     ahead(fetches.with_values + i * panel_tokens));
  }
  for (; i < stride; i += lanes) {
    blend<Rows, 1, Next>(tile.scores, factors, limits, panel.values + i, stride, out + i, stride,
                         ahead(fetches.with_values + i * panel_tokens));
  }
}

/// Queries [first, first + count), count <= block_queries.
template <bool Fetch, class T>
void attend_some(const QueryTile<T>& tile, const SplitState& state, int first, int count,
                 const Panel<T>& panel, const Fetches<T>& fetches) {
  static_assert(block_queries == 6);
  switch (count) {
    case 6:
      return attend_block<6, Fetch>(tile, state, first, panel, fetches);
    case 5:
      return attend_block<5, Fetch>(tile, state, first, panel, fetches);
    case 4:
      return attend_block<4, Fetch>(tile, state, first, panel, fetches);
    case 3:
      return attend_block<3, Fetch>(tile, state, first, panel, fetches);
    case 2:
      return attend_block<2, Fetch>(tile, state, first, panel, fetches);
    default:
      return attend_block<1, Fetch>(tile, state, first, panel, fetches);
  }
}

/// First query of the tile that sees the key at `position`.
template <class T>
int first_query(const QueryTile<T>& tile, int position) {
  const int hidden_rows = position - tile.args.first_position;
  return hidden_rows > 0 ? hidden_rows * tile.group : 0;
}

/// All queries against the keys of one split; `state` becomes that of the queries which see some.
template <class T>
void attend_split(const QueryTile<T>& tile, int split, const SplitState& state) {
  const AttendArgs& args = tile.args;
  state.clear(tile.n, args.layout.value_stride);
  const int last = args.first_position + args.num_rows - 1;
  const int begin = split * split_tokens;
  const int end = begin + split_tokens <= last ? begin + split_tokens : last + 1;
  for (int start = begin; start < end; start += panel_tokens) {
    const Panel<T> panel(args, start);
    const Panel<T> next(args, start + panel_tokens <= last ? start + panel_tokens : start);
    const Fetches<T> fetches(panel, next, args.layout.head_dim);
    int first = first_query(tile, start);
    int count = tile.n - first < block_queries ? tile.n - first : block_queries;
    attend_some<true>(tile, state, first, count, panel, fetches);
    for (first += count; first < tile.n; first += count) {
      count = tile.n - first < block_queries ? tile.n - first : block_queries;
      attend_some<false>(tile, state, first, count, panel, fetches);
    }
  }
}

/// total = total and then `part`, the state of `split`, for the queries that see it.
template <class T>
void merge_split(const QueryTile<T>& tile, const SplitState& total, const SplitState& part,
                 int split) {
  const int stride = tile.args.layout.value_stride;
  for (int i = first_query(tile, split * split_tokens); i < tile.n; ++i) {
    const float before = total.top[i];
    const float now = part.top[i] > before ? part.top[i] : before;
    total.top[i] = now;
    const Vec keep = exp(broadcast((before - now) * tile.scale));
    const Vec take = exp(broadcast((part.top[i] - now) * tile.scale));
    const auto add = [&](float* to, const float* from) {
      store(to, fma(load(from), take, load(to) * keep));
    };
    add(total.sums + i * 16, part.sums + i * 16);
    for (int j = 0; j < stride; j += lanes) {
      add(total.out + std::int64_t{i} * stride + j, part.out + std::int64_t{i} * stride + j);
    }
  }
}

/// Divides by the sums, rounds and writes the heads' outputs.
template <class T>
void write_outputs(const QueryTile<T>& tile, const SplitState& total) {
  const AttendArgs& args = tile.args;
  const int d = args.layout.head_dim;
  for (int i = 0; i < tile.n; ++i) {
    const int at = args.first_head + i % tile.group;
    T* to =
        static_cast<T*>(args.out) + (std::int64_t{i / tile.group} * args.layout.num_heads + at) * d;
    const float* out = total.out + std::int64_t{i} * args.layout.value_stride;
    const Vec inverse = broadcast(1.0F / sum(load(total.sums + i * 16)));
    for (int j = 0; j < d; j += lanes) {
      // + 0 turns a negative zero, whose sign depends on the block, into a positive one.
      store(to + j, load(out + j) * inverse + broadcast(0), d - j);
    }
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

/// A tile without queries and scores.
template <class T>
QueryTile<T> tile_of(const AttendArgs& args) {
  const int d = args.layout.head_dim;
  return {args,    args.num_heads, args.num_rows * args.num_heads,         (d + 15) / 16 * 16,
          nullptr, nullptr,        1.0F / std::sqrt(static_cast<float>(d))};
}

template <class T>
void attend(const AttendArgs& args) {
  QueryTile<T> tile = tile_of<T>(args);
  const int d = args.layout.head_dim;
  const int stride = args.layout.value_stride;
  tile.scores = args.scratch;
  float* states = tile.scores + block_queries * panel_tokens;
  const std::int64_t state_floats = attend_state_floats(args.layout, tile.n);
  tile.q = reinterpret_cast<typename Query<T>::type*>(states + 2 * state_floats);
  for (int i = 0; i < tile.n; ++i) {
    const int head = args.first_head + i % tile.group;
    const T* q = static_cast<const T*>(args.qkv) + i / tile.group * args.qkv_stride + head * d;
    load_query(q, tile.q + i * tile.q_stride, d);
  }
  if (args.partial != nullptr) {
    for (int split = args.first_split; split < args.end_split; ++split) {
      attend_split(tile, split, {args.partial + split * state_floats, tile.n, stride});
    }
    return;
  }
  const SplitState total(states, tile.n, stride);
  const SplitState part(states + state_floats, tile.n, stride);
  attend_split(tile, 0, total);
  const int last = args.first_position + args.num_rows - 1;
  for (int split = 1; split <= last / split_tokens; ++split) {
    attend_split(tile, split, part);
    merge_split(tile, total, part, split);
  }
  write_outputs(tile, total);
}

template <class T>
void merge_splits(const AttendArgs& args) {
  const QueryTile<T> tile = tile_of<T>(args);
  const int stride = args.layout.value_stride;
  const std::int64_t state_floats = attend_state_floats(args.layout, tile.n);
  const SplitState total(args.partial, tile.n, stride);
  const int last = args.first_position + args.num_rows - 1;
  for (int split = 1; split <= last / split_tokens; ++split) {
    merge_split(tile, total, {args.partial + split * state_floats, tile.n, stride}, split);
  }
  write_outputs(tile, total);
}

}  // namespace
}  // namespace atl::compute
