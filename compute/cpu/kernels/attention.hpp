#pragma once
// Attention, included once per instruction set.
//
// Keys are cut into splits of 512 at fixed positions. Attention goes through a split's keys a panel
// of 64 at a time, in order of position, with an online softmax, and then merges the splits in
// order. Each query's operations and their order depend on its own position only, never on which
// other queries share its block, nor on whether the same thread did all splits: a decoded token and
// the same token in a prefill agree bit by bit.

#include <cstring>
#include <limits>
#include <type_traits>

#include "compute/cpu/kernels.hpp"
#include "compute/cpu/kernels/attention_blocks.hpp"
#include "compute/cpu/kernels/kv_pages.hpp"
#include "compute/cpu/kernels/simd.hpp"

namespace atl::compute {
namespace {

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

  /// Whether no key has counted for query i, which a window makes so. One that is not finite has.
  bool sees_nothing(int i) const {
    return top[i] == -std::numeric_limits<float>::infinity() &&
           sum(load(sums + std::int64_t{i} * 16)) == 0;
  }

  /// Query i becomes what it is in `from`.
  void copy(const SplitState& from, int i, int stride) const {
    std::memcpy(out + std::int64_t{i} * stride, from.out + std::int64_t{i} * stride,
                static_cast<std::size_t>(stride) * sizeof(float));
    std::memcpy(sums + std::int64_t{i} * 16, from.sums + std::int64_t{i} * 16, 16 * sizeof(float));
    top[i] = from.top[i];
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
  T* panel;  // of latents: the keys at hand, [64 * head_dim]
};

/// Elements [count][width] of rows `stride` apart as a panel of keys.
template <class T>
inline void store_panel(const T* rows, std::int64_t stride, int count, int width, T* panel) {
  if constexpr (__is_same(T, Bf16)) {
    for (int i = 0; i < width; i += 2) {
      T* to = panel + key_offset(panel, i, 0);
      for (int t = 0; t < count; ++t) std::memcpy(to + 2 * t, rows + t * stride + i, 2 * sizeof(T));
    }
  } else {
    for (int i = 0; i < width; ++i) {
      T* to = panel + key_offset(panel, i, 0);
      for (int t = 0; t < count; ++t) to[t] = rows[t * stride + i];
    }
  }
}

/// The keys and values of 64 positions from `start` on.
template <class T>
struct Panel {
  int start;
  const T* keys;
  const T* values;
  std::int64_t value_stride;

  Panel(const AttendArgs& args, int from) : start(from), value_stride(args.layout.value_stride) {
    const KvLayout& layout = args.layout;
    const std::int64_t token = start % layout.page_tokens;
    keys = head_of<T>(layout, args.kv, args.pages[start / layout.page_tokens], args.kv_head);
    values = keys + layout.keys_per_head() + token * layout.value_stride;
    keys += token * layout.head_dim;
  }

  /// Of latents, whose keys are copied to tile.panel; `end` is the last position that is there.
  Panel(const QueryTile<T>& tile, int from, int end)
      : start(from), keys(tile.panel), value_stride(tile.args.layout.latent_stride) {
    const KvLayout& layout = tile.args.layout;
    values = static_cast<const T*>(tile.args.kv) +
             tile.args.pages[start / layout.page_tokens] * layout.page_elements() +
             start % layout.page_tokens * layout.latent_stride;
    const int count = end - start < panel_tokens ? end - start : panel_tokens;
    store_panel(values, layout.latent_stride, count, layout.head_dim, tile.panel);
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
  Seen<Rows> seen;
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
    const int limit = args.first_position + (first + r) / tile.group + 1 - panel.start;
    seen.limits[r] = limit < panel_tokens ? limit : panel_tokens;
    const int low = args.window > 0 ? limit - args.window : 0;
    seen.lows[r] = low < 0 ? 0 : low < panel_tokens ? low : panel_tokens;
    Running running{state.top + first + r, state.sums + (first + r) * 16, 1.0F};
    if (seen.lows[r] < seen.limits[r]) {
      soften(tile.scores + r * panel_tokens, seen.lows[r], seen.limits[r], tile.scale, running);
    }
    factors[r] = running.factor;
  }
  const int stride = layout.value_stride;
  float* out = state.out + std::int64_t{first} * stride;
  int i = 0;
  for (; i + block_vectors * lanes <= stride; i += block_vectors * lanes) {
    blend<Rows, block_vectors, Next>(tile.scores, factors, seen, panel.values + i,
                                     panel.value_stride, out + i, stride,
                                     ahead(fetches.with_values + i * panel_tokens));
  }
  for (; i < stride; i += lanes) {
    blend<Rows, 1, Next>(tile.scores, factors, seen, panel.values + i, panel.value_stride, out + i,
                         stride, ahead(fetches.with_values + i * panel_tokens));
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

/// The first panel that a query of the tile sees a key of.
inline int first_panel(const AttendArgs& args) {
  const int first = args.first_position + 1 - args.window;
  return args.window > 0 && first > 0 ? first / panel_tokens * panel_tokens : 0;
}

/// All queries against the keys of one split; `state` becomes that of the queries which see some.
template <class T>
void attend_split(const QueryTile<T>& tile, int split, const SplitState& state) {
  const AttendArgs& args = tile.args;
  state.clear(tile.n, args.layout.value_stride);
  const int last = args.first_position + args.num_rows - 1;
  const int begin = split * split_tokens;
  const int end = begin + split_tokens <= last ? begin + split_tokens : last + 1;
  const int seen = first_panel(args);
  const auto block_of = [&](int first) {
    return tile.n - first < block_queries ? tile.n - first : block_queries;
  };
  for (int start = begin < seen ? seen : begin; start < end; start += panel_tokens) {
    int first = first_query(tile, start);
    if (tile.panel != nullptr) {
      const Panel<T> panel(tile, start, last + 1);
      const Fetches<T> nothing(panel, panel, args.layout.head_dim);
      for (; first < tile.n; first += block_queries) {
        attend_some<false>(tile, state, first, block_of(first), panel, nothing);
      }
      continue;
    }
    const Panel<T> panel(args, start);
    const Panel<T> next(args, start + panel_tokens <= last ? start + panel_tokens : start);
    const Fetches<T> fetches(panel, next, args.layout.head_dim);
    attend_some<true>(tile, state, first, block_of(first), panel, fetches);
    for (first += block_of(first); first < tile.n; first += block_of(first)) {
      attend_some<false>(tile, state, first, block_of(first), panel, fetches);
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
    if (part.sees_nothing(i)) continue;
    if (total.sees_nothing(i)) {
      total.copy(part, i, stride);
      continue;
    }
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

/// What a query's output is multiplied by in the end: a sink joins the sum of its weights.
template <class T>
float inverse_sum(const QueryTile<T>& tile, const SplitState& total, int i, int head) {
  const float weights = sum(load(total.sums + i * 16));
  if (tile.args.sinks == nullptr) return 1.0F / weights;
  const float top = total.top[i] * tile.scale;
  const float sink = tile.args.sinks[head];
  const float highest = sink > top ? sink : top;
  const float keep = exp(broadcast(top - highest))[0];
  return keep / (weights * keep + exp(broadcast(sink - highest))[0]);
}

/// Divides by the sums, rounds and writes the heads' outputs.
template <class T>
void write_outputs(const QueryTile<T>& tile, const SplitState& total) {
  const AttendArgs& args = tile.args;
  const int d = args.layout.value_dim;
  for (int i = 0; i < tile.n; ++i) {
    const int at = args.first_head + i % tile.group;
    T* to =
        static_cast<T*>(args.out) + (std::int64_t{i / tile.group} * args.layout.num_heads + at) * d;
    const float* out = total.out + std::int64_t{i} * args.layout.value_stride;
    const Vec inverse = broadcast(inverse_sum(tile, total, i, at));
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
  return {args,
          args.num_heads,
          args.num_rows * args.num_heads,
          (d + 15) / 16 * 16,
          nullptr,
          nullptr,
          args.scale,
          nullptr};
}

template <class T>
void pack_keys(const void* keys, int count, int head_dim, void* panel) {
  store_panel(static_cast<const T*>(keys), head_dim, count, head_dim, static_cast<T*>(panel));
}

template <class T>
void attend(const AttendArgs& args) {
  QueryTile<T> tile = tile_of<T>(args);
  const int d = args.layout.head_dim;
  const int stride = args.layout.value_stride;
  tile.scores = args.scratch;
  float* states = tile.scores + block_queries * panel_tokens;
  const std::int64_t state_floats = attend_state_floats(args.layout, tile.n);
  float* queries = states + 2 * state_floats;
  if (args.layout.latent_width > 0) {
    tile.panel = reinterpret_cast<T*>(queries);
    queries += std::int64_t{panel_tokens} * d;
  }
  tile.q = reinterpret_cast<typename Query<T>::type*>(queries);
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
  const int first = first_panel(args) / split_tokens;
  attend_split(tile, first, total);
  const int last = args.first_position + args.num_rows - 1;
  for (int split = first + 1; split <= last / split_tokens; ++split) {
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
