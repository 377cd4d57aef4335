#pragma once
// GEMM over packed panels, included once per instruction set (see simd.hpp for why all is
// anonymous).

#include <cstdint>

#include "compute/cpu/kernels/simd.hpp"

namespace atl::compute {
namespace {

/// One block of panel_gemm: Rows rows by one panel of 16 columns; sums continue from c unless
/// `first`, so that an element's order of additions is that of k whatever the blocks.
template <int Rows>
inline void panel_block(const float* a, std::int64_t a_stride, const float* panel, int k, float* c,
                        std::int64_t c_stride, int columns, bool first) {
  constexpr int vectors = 16 / lanes;
  Vec acc[Rows][vectors];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) {
      const int left = columns - v * lanes;
      acc[r][v] = first || left <= 0 ? broadcast(0) : load(c + r * c_stride + v * lanes, left);
    }
  }
  for (int i = 0; i < k; ++i) {
    Vec b[vectors];
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) b[v] = load(panel + i * 16 + v * lanes);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const Vec x = broadcast(a[r * a_stride + i]);
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) acc[r][v] = fma(x, b[v], acc[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) {
      const int left = columns - v * lanes;
      if (left > 0) store(c + r * c_stride + v * lanes, acc[r][v], left);
    }
  }
}

inline void panel_gemm(const float* a, const float* panels, float* c, int rows, int k, int n,
                       int begin, int end) {
  constexpr int depth = 256;  // a panel's slice of 16 KiB stays in L1
  constexpr int height = 6;   // 6 rows by 2 vectors fill AVX2's 16 registers
  for (int k0 = 0; k0 < k; k0 += depth) {
    const int ks = k - k0 < depth ? k - k0 : depth;
    for (int p = begin; p < end; ++p) {
      const float* panel = panels + (std::int64_t{p} * k + k0) * 16;
      const int columns = n - p * 16 < 16 ? n - p * 16 : 16;
      int r = 0;
      for (; r + height <= rows; r += height) {
        panel_block<height>(a + std::int64_t{r} * k + k0, k, panel, ks,
                            c + std::int64_t{r} * n + p * 16, n, columns, k0 == 0);
      }
      for (; r < rows; ++r) {
        panel_block<1>(a + std::int64_t{r} * k + k0, k, panel, ks, c + std::int64_t{r} * n + p * 16,
                       n, columns, k0 == 0);
      }
    }
  }
}

}  // namespace
}  // namespace atl::compute
