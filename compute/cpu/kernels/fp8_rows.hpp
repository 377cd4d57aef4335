#pragma once
// Few rows by panels of E4M3 codes, which become pairs of bfloat16 in registers and are multiplied
// there: the same chains of multiply-adds as by way of memory. Needs AVX-512 with BF16 and VBMI.

#include <cstdint>

#include "compute/cpu/kernels/codes.hpp"

namespace atl::compute {
namespace {

/// So many rows at most.
constexpr int fp8_rows_at_once = 4;

/// Steps of two k of one group, by panels whose columns have one scale each panel.
struct Fp8Piece {
  const Bf16Pair* a;  // element 0 of the first row is the first step's
  std::int64_t a_stride;
  const char* codes;  // of the first panel
  std::int64_t panel_bytes;
  int steps;
  float* c;
  std::int64_t c_stride;
  bool first;  // else sums continue from c
};

/// Sums of 32 columns as unpacking bytes leaves them: eight of 16 bytes' columns in turns, and
/// back.
inline void load_turned(const float* c, Vec (&sums)[2]) {
  const __m512i low = _mm512_set_epi64(13, 12, 9, 8, 5, 4, 1, 0);
  const __m512i high = _mm512_set_epi64(15, 14, 11, 10, 7, 6, 3, 2);
  const auto first = _mm512_castps_pd(load(c));
  const auto second = _mm512_castps_pd(load(c + lanes));
  sums[0] = _mm512_castpd_ps(_mm512_permutex2var_pd(first, low, second));
  sums[1] = _mm512_castpd_ps(_mm512_permutex2var_pd(first, high, second));
}
inline void store_turned(const Vec (&sums)[2], float* c) {
  const __m512i first = _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0);
  const __m512i second = _mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4);
  const auto low = _mm512_castps_pd(sums[0]);
  const auto high = _mm512_castps_pd(sums[1]);
  store(c, _mm512_castpd_ps(_mm512_permutex2var_pd(low, first, high)));
  store(c + lanes, _mm512_castpd_ps(_mm512_permutex2var_pd(low, second, high)));
}

template <int Rows, int Panels>
[[gnu::noinline, gnu::target("avx512vbmi")]] void fp8_block(const Fp8Piece& piece,
                                                            const float* scales) {
  const __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80));
  ByteTables tables[Panels];
  Vec sums[Rows][Panels][2];
#pragma GCC unroll 4
  for (int p = 0; p < Panels; ++p) {
    tables[p] = byte_tables(fp8_numbers, scales[p]);
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
      if (piece.first) {
        sums[r][p][0] = sums[r][p][1] = broadcast(0);
      } else {
        load_turned(piece.c + r * piece.c_stride + 2 * lanes * p, sums[r][p]);
      }
    }
  }
  const char* codes = piece.codes;
  for (int i = 0; i < piece.steps; ++i, codes += 64) {
#pragma GCC unroll 4
    for (int p = 0; p < Panels; ++p) {
      const char* at = codes + p * piece.panel_bytes;
      _mm_prefetch(at + 2048, _MM_HINT_T0);  // the hardware's ends with each 4 KiB
      const __m512i bytes = _mm512_loadu_si512(at);
      const __m512i lower = _mm512_permutex2var_epi8(tables[p].lower[0], bytes, tables[p].lower[1]);
      __m512i upper = _mm512_permutex2var_epi8(tables[p].upper[0], bytes, tables[p].upper[1]);
      upper = _mm512_ternarylogic_epi64(upper, bytes, sign, 0x78);  // upper ^ (bytes & sign)
      const auto low = reinterpret_cast<Pairs>(_mm512_unpacklo_epi8(lower, upper));
      const auto high = reinterpret_cast<Pairs>(_mm512_unpackhi_epi8(lower, upper));
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) {
        const Pairs x = broadcast(piece.a[r * piece.a_stride + i]);
        sums[r][p][0] = dot(sums[r][p][0], x, low);
        sums[r][p][1] = dot(sums[r][p][1], x, high);
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int p = 0; p < Panels; ++p) {
      store_turned(sums[r][p], piece.c + r * piece.c_stride + 2 * lanes * p);
    }
  }
}

/// How many panels together keep the registers: tables of each take four.
constexpr int fp8_panels_at_once(int rows) {
  return rows == 1 ? 4 : 2;
}

/// `panels` is fp8_panels_at_once(rows), or 1.
inline void fp8_piece(const Fp8Piece& piece, int rows, int panels, const float* scales) {
  switch (rows) {
    case 1:
      return panels == 1 ? fp8_block<1, 1>(piece, scales) : fp8_block<1, 4>(piece, scales);
    case 2:
      return panels == 1 ? fp8_block<2, 1>(piece, scales) : fp8_block<2, 2>(piece, scales);
    case 3:
      return panels == 1 ? fp8_block<3, 1>(piece, scales) : fp8_block<3, 2>(piece, scales);
    default:
      return panels == 1 ? fp8_block<4, 1>(piece, scales) : fp8_block<4, 2>(piece, scales);
  }
}

/// The scale of all columns of a panel, whose scales begin at `at`; NaN where they differ.
inline float one_scale(const char* at) {
  const auto* scales = reinterpret_cast<const float*>(at);
  const Vec one = broadcast(scales[0]);
  const unsigned differ = _mm512_cmp_ps_mask(load(scales), one, _CMP_NEQ_UQ) |
                          _mm512_cmp_ps_mask(load(scales + lanes), one, _CMP_NEQ_UQ);
  return differ == 0 ? scales[0] : __builtin_nanf("");
}

}  // namespace
}  // namespace atl::compute
