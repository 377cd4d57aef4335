#pragma once
// GEMM with weights in panels, included once per instruction set (see simd.hpp for why all is
// anonymous).
//
// A panel holds the weights of two vectors of columns, k after k, at their own width; they are
// widened to float32 when they are loaded, which is exact. Every element is one chain of
// multiply-adds over k: neither the other rows nor the cutting of k, rows and columns change it.

#include "compute/cpu/kernels.hpp"
#include "compute/cpu/kernels/rows.hpp"
#include "compute/cpu/kernels/simd.hpp"

namespace atl::compute {
namespace {

constexpr int panel_columns = 2 * lanes;
/// Rows of a block: with two vectors of columns each they fill the registers.
constexpr int panel_height = lanes == 16 ? 12 : 6;
static_assert(panel_columns <= max_panel_columns);

/// Place of a column in one k of a panel: bfloat16 lie in pairs, so that one vector of them is
/// widened by a shift and a mask.
template <class T>
constexpr int panel_place(int column) {
  if constexpr (__is_same(T, Bf16)) return column < lanes ? 2 * column : 2 * (column - lanes) + 1;
  return column;
}

inline void load_panel(const Bf16* p, Vec (&v)[2]) {
  v[0] = load_even(p);
  v[1] = load_odd(p);
}
template <class T>
inline void load_panel(const T* p, Vec (&v)[2]) {
  v[0] = load(p);
  v[1] = load(p + lanes);
}

/// Column that lies `half` (0 or 1) in pair `pair` of a panel's 16-bit weights.
template <class T>
constexpr int column_of(int pair, int half) {
  return __is_same(T, Bf16) ? pair + half * lanes : 2 * pair + half;
}

/// Four rows of four 32-bit words at `words`, transposed to rows `stride` bytes apart.
inline void transpose_words(const __m128i (&words)[4], char* to, std::int64_t stride) {
  const __m128i a = _mm_unpacklo_epi32(words[0], words[1]);
  const __m128i b = _mm_unpacklo_epi32(words[2], words[3]);
  const __m128i c = _mm_unpackhi_epi32(words[0], words[1]);
  const __m128i d = _mm_unpackhi_epi32(words[2], words[3]);
  const __m128i rows[4] = {_mm_unpacklo_epi64(a, b), _mm_unpackhi_epi64(a, b),
                           _mm_unpacklo_epi64(c, d), _mm_unpackhi_epi64(c, d)};
  for (int i = 0; i < 4; ++i)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i * stride), rows[i]);
}

/// pack_panel() of four 32-bit words of the panel, from number `word` on, and of one cache line of
/// their columns.
template <class T>
void pack_words(const T* from, int k, int word, T* to) {
  constexpr int line = 64 / sizeof(T);
  constexpr std::int64_t stride = panel_columns * sizeof(T);
  char* out = reinterpret_cast<char*>(to) + word * 4;
  const auto load_at = [from, k](int column, int i) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + std::int64_t{column} * k + i));
  };
  for (int i = 0; i < line; i += 16 / static_cast<int>(sizeof(T))) {
    __m128i low[4];
    if constexpr (sizeof(T) == 4) {
      for (int w = 0; w < 4; ++w) low[w] = load_at(word + w, i);
    } else {
      __m128i high[4];
      for (int w = 0; w < 4; ++w) {
        const __m128i a = load_at(column_of<T>(word + w, 0), i);
        const __m128i b = load_at(column_of<T>(word + w, 1), i);
        low[w] = _mm_unpacklo_epi16(a, b);
        high[w] = _mm_unpackhi_epi16(a, b);
      }
      transpose_words(high, out + (i + 4) * stride, stride);
    }
    transpose_words(low, out + i * stride, stride);
  }
}

template <class T>
void pack_panel(const void* weight, int n, int k, int panel, void* out) {
  const int first = panel * panel_columns;
  const int columns = n - first < panel_columns ? n - first : panel_columns;
  const T* from = static_cast<const T*>(weight) + std::int64_t{first} * k;
  T* to = static_cast<T*>(out);
  constexpr int line = 64 / sizeof(T);
  int i = 0;
  for (; columns == panel_columns && i + line <= k; i += line) {
    for (int word = 0; word < panel_columns * static_cast<int>(sizeof(T)) / 4; word += 4) {
      pack_words(from + i, k, word, to + std::int64_t{i} * panel_columns);
    }
  }
  for (; i < k; ++i) {
    T* row = to + std::int64_t{i} * panel_columns;
    for (int c = 0; c < columns; ++c) row[panel_place<T>(c)] = from[std::int64_t{c} * k + i];
    for (int c = columns; c < panel_columns; ++c) row[panel_place<T>(c)] = T{};
  }
}

/// A block of panel_gemm: rows of `a` by panels `panel_stride` elements apart, over `k`.
template <class T>
struct PanelBlock {
  const float* a;
  std::int64_t a_stride;
  const T* panels;
  std::int64_t panel_stride;
  int num_panels;
  int k;
  float* c;
  std::int64_t c_stride;
  bool first;  // else sums continue from c
};

/// Rows rows by Panels panels.
template <int Rows, int Panels, class T>
[[gnu::noinline]] void panel_block(const PanelBlock<T>& block, int panel) {
  constexpr int ahead = 2048 / Panels;  // bytes; the hardware's prefetching ends with each 4 KiB
  const float* a = block.a;
  const std::int64_t a_stride = block.a_stride;
  const std::int64_t panel_stride = block.panel_stride;
  const T* b = block.panels + panel * panel_stride;
  float* c = block.c + panel * panel_columns;
  Vec acc[Rows][Panels][2];
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
    for (int p = 0; p < Panels; ++p) {
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) {
        acc[r][p][v] = block.first ? broadcast(0)
                                   : load(c + r * block.c_stride + p * panel_columns + v * lanes);
      }
    }
  }
  for (int i = 0; i < block.k; ++i) {
    Vec w[Panels][2];
#pragma GCC unroll 8
    for (int p = 0; p < Panels; ++p) {
      const T* at = b + p * panel_stride + i * panel_columns;
      load_panel(at, w[p]);
      __builtin_prefetch(reinterpret_cast<const char*>(at) + ahead);
    }
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      const Vec x = broadcast(a[r * a_stride + i]);
#pragma GCC unroll 8
      for (int p = 0; p < Panels; ++p) {
#pragma GCC unroll 2
        for (int v = 0; v < 2; ++v) acc[r][p][v] = fma(x, w[p][v], acc[r][p][v]);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
    for (int p = 0; p < Panels; ++p) {
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) {
        store(c + r * block.c_stride + p * panel_columns + v * lanes, acc[r][p][v]);
      }
    }
  }
}

/// Rows rows by all panels of the block. Few rows take several panels at once: a multiply-add waits
/// for the one before it in its chain, and a vector or two of chains leave the units idle.
template <int Rows, class T>
void panel_rows(const PanelBlock<T>& block) {
  const int n = block.num_panels;
  int p = 0;
  if constexpr (Rows == 1) {
    for (; p + 4 <= n; p += 4) panel_block<Rows, 4>(block, p);
  }
  if constexpr (3 * Rows <= panel_height) {
    for (; p + 2 <= n; p += 2) panel_block<Rows, 2>(block, p);
  }
  for (; p < n; ++p) panel_block<Rows, 1>(block, p);
}

template <class T, int Rows = panel_height>
void panel_rows(int rows, const PanelBlock<T>& block) {
  if constexpr (Rows > 1) {
    if (rows < Rows) return panel_rows<T, Rows - 1>(rows, block);
  }
  panel_rows<Rows>(block);
}

/// All rows of a task by the panels of the block, in blocks of equal height.
template <class T>
void panel_blocks(int rows, PanelBlock<T> block) {
  const int count = (rows + panel_height - 1) / panel_height;
  const float* a = block.a;
  float* c = block.c;
  for (int i = 0; i < count; ++i) {
    const int first = rows * i / count;
    block.a = a + first * block.a_stride;
    block.c = c + first * block.c_stride;
    panel_rows(rows * (i + 1) / count - first, block);
  }
}

/// From how many rows on a panel is widened once for all blocks: float16 costs more than bfloat16.
template <class T>
constexpr int widened_from = __is_same(T, F16) ? 2 * panel_height + 1 : panel_gemm_rows;
template <>
constexpr int widened_from<float> = panel_gemm_rows + 1;

/// Bytes of a panel that are read again and again; with the rows of a block they stay in L1.
constexpr int slice_bytes = 16384;

/// How many k go through the rows of a task before the next: in one block nothing is read again.
template <class T>
constexpr int panel_depth(int rows) {
  if (rows <= panel_height) return 1024;
  const bool widened = rows >= widened_from<T>;
  return slice_bytes / panel_columns / static_cast<int>(widened ? sizeof(float) : sizeof(T));
}
/// Floats between widened rows: not a multiple of a page, which the rows of a block would share a
/// part of L1 for.
constexpr int row_stride(int k) {
  return k + 16;
}
static_assert((widened_from<Bf16> - 1) * row_stride(panel_depth<Bf16>(panel_height + 1)) <=
              panel_scratch_floats);
static_assert(panel_gemm_rows * row_stride(panel_depth<float>(panel_gemm_rows)) <=
              panel_scratch_floats);
static_assert(panel_height * row_stride(panel_depth<float>(1)) <= panel_scratch_floats);

/// The block's one panel as float32 in `wide`.
template <class T>
PanelBlock<float> widened(const PanelBlock<T>& block, float* wide) {
  for (int i = 0; i < block.k; ++i) {
    Vec v[2];
    load_panel(block.panels + i * panel_columns, v);
    store(wide + i * panel_columns, v[0]);
    store(wide + i * panel_columns + lanes, v[1]);
  }
  return {block.a, block.a_stride, wide, 0, 1, block.k, block.c, block.c_stride, block.first};
}

template <class T>
void panel_gemm(const PanelTask& task) {
  const int depth = panel_depth<T>(task.num_rows);
  alignas(64) float wide[slice_bytes / sizeof(float)];
  for (int k0 = 0; k0 < task.k; k0 += depth) {
    const int k = task.k - k0 < depth ? task.k - k0 : depth;
    for (int r = 0; r < task.num_rows; ++r) {
      to_float<T>(static_cast<const T*>(task.rows[r]) + k0, task.scratch + r * row_stride(k), k);
    }
    PanelBlock<T> block;
    block.a = task.scratch;
    block.a_stride = row_stride(k);
    block.panels = static_cast<const T*>(task.panels) + std::int64_t{k0} * panel_columns;
    block.panel_stride = std::int64_t{task.k} * panel_columns;
    block.num_panels = task.num_panels;
    block.k = k;
    block.c = task.c;
    block.c_stride = task.c_stride;
    block.first = k0 == 0;
    if (task.num_rows <= panel_height) {
      panel_rows(task.num_rows, block);
      continue;
    }
    block.num_panels = 1;
    for (int p = 0; p < task.num_panels; ++p) {
      if (task.num_rows >= widened_from<T>) {
        panel_blocks(task.num_rows, widened(block, wide));
      } else {
        panel_blocks(task.num_rows, block);
      }
      block.panels += block.panel_stride;
      block.c += panel_columns;
    }
  }
}

}  // namespace
}  // namespace atl::compute
