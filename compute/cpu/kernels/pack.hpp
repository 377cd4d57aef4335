#pragma once
// Weights into panels, included once per instruction set (see simd.hpp for why all is anonymous).
//
// A panel holds the weights of two vectors of columns, k after k, at their own width. Where pairs
// of bfloat16 are multiplied as they are (Bf16Pair), its elements are pairs of neighbours in k.

#include "compute/cpu/kernels.hpp"
#include "compute/cpu/kernels/simd.hpp"

namespace atl::compute {
namespace {

constexpr int panel_columns = 2 * lanes;
static_assert(panel_columns <= max_panel_columns);

/// What a panel of T's is made of.
template <class T>
struct PanelElement {
  using type = T;
};
#if defined(ATL_BF16_PAIRS)
template <>
struct PanelElement<Bf16> {
  using type = Bf16Pair;
};
#endif
/// Elements of T in one of a panel: k of panels is rounded up to a multiple of it.
template <class T>
constexpr int panel_step = sizeof(typename PanelElement<T>::type) / sizeof(T);

/// Place of a column in one k of a panel: bfloat16 lie in pairs of columns, so that one vector of
/// them is widened by a shift and a mask.
template <class T>
constexpr int panel_place(int column) {
  if constexpr (__is_same(T, Bf16)) return column < lanes ? 2 * column : 2 * (column - lanes) + 1;
  return column;
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

/// pack_panel() of panels whose elements are T's.
template <class T>
void pack_elements(const void* weight, int n, int k, int panel, void* out) {
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

template <class T>
void pack_panel(const void* weight, int n, int k, int panel, void* out) {
  if constexpr (panel_step<T> == 1) {
    pack_elements<T>(weight, n, k, panel, out);
  } else if (k % 2 == 0) {
    pack_elements<Bf16Pair>(weight, n, k / 2, panel, out);
  } else {  // no row but the first begins with a whole pair
    const int first = panel * panel_columns;
    const T* from = static_cast<const T*>(weight) + std::int64_t{first} * k;
    Bf16Pair* to = static_cast<Bf16Pair*>(out);
    for (int i = 0; i < k; i += 2) {
      for (int c = 0; c < panel_columns; ++c, ++to) {
        *to = {};
        if (first + c >= n) continue;
        to->of[0] = from[std::int64_t{c} * k + i];
        if (i + 1 < k) to->of[1] = from[std::int64_t{c} * k + i + 1];
      }
    }
  }
}

}  // namespace
}  // namespace atl::compute
