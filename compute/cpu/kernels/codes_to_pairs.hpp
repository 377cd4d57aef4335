#pragma once
// Codes into pairs of bfloat16 by vectors of 32, where a CPU has AVX-512 with BF16: the same bits
// as by codes.hpp's vectors of float32, in fewer instructions.

#include <immintrin.h>

#include <cstdint>

#include "compute/cpu/kernels/simd.hpp"

namespace atl::compute {
namespace {

/// The scales of a step of two k by 32 columns, 16 a vector, as load_scales() has them.
using StepScales = Vec[4];

/// 32 halves times their scales.
inline void store_scaled(__m512i halves, Vec low_scale, Vec high_scale, void* out) {
  const Vec low = _mm512_cvtph_ps(_mm512_castsi512_si256(halves)) * low_scale;
  const Vec high = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(halves, 1)) * high_scale;
  _mm512_storeu_si512(out, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
}

inline __m512i widened_bytes(const char* from) {
  return _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

/// `count` steps of E4M3, 64 bytes each; scales are times 256 (see load_e4m3).
inline void fp8_to_pairs(const StepScales& scale, const char* from, int count, Bf16Pair* out) {
  const __m512i fields = _mm512_set1_epi16(static_cast<short>(0xbfff));
  for (int i = 0; i < count; ++i, from += 64, out += 32) {
    _mm_prefetch(from + 2048, _MM_HINT_T0);
    for (int half = 0; half < 2; ++half) {
      const __m512i words = _mm512_cvtepi8_epi16(
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 32 * half)));
      const __m512i halves = _mm512_and_si512(_mm512_slli_epi16(words, 7), fields);
      store_scaled(halves, scale[2 * half], scale[2 * half + 1], out + 16 * half);
    }
  }
}

/// A table of 16 numbers of four bits, twice, as the upper bytes of 16-bit ones.
inline __m512i table_of_words(const std::uint8_t (&table)[16]) {
  const __m512i bytes = _mm512_cvtepu8_epi16(
      _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table))));
  return _mm512_slli_epi16(bytes, 8);
}

/// `count` steps of four bits, 32 bytes each, by a table of halves.
inline void halves_to_pairs(const std::uint8_t (&table)[16], const StepScales& scale,
                            const char* from, int count, Bf16Pair* out) {
  const __m512i numbers = table_of_words(table);
  for (int i = 0; i < count; ++i, from += 32, out += 32) {
    _mm_prefetch(from + 2048, _MM_HINT_T0);
    const __m512i words = widened_bytes(from);
    store_scaled(_mm512_permutexvar_epi16(words, numbers), scale[0], scale[1], out);
    store_scaled(_mm512_permutexvar_epi16(_mm512_srli_epi16(words, 4), numbers), scale[2], scale[3],
                 out + 16);
  }
}

/// The exponents of 32 scales, powers of two, as what is added to a bfloat16's bits.
inline __m512i exponents_of(Vec low, Vec high) {
  const auto words = [](Vec scale) {
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(scale), 16));
  };
  const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(words(low)), words(high), 1);
  return _mm512_sub_epi16(both, _mm512_set1_epi16(127 << 7));
}

/// `count` steps of MXFP4, 32 bytes each, of exponents with which every number stays a normal one.
inline void mxfp4_to_pairs(const StepScales& scale, const char* from, int count, Bf16Pair* out) {
  alignas(64) constexpr std::uint16_t numbers[32] = {
      0,      0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0, 0x8000, 0xbf00, 0xbf80,
      0xbfc0, 0xc000, 0xc040, 0xc080, 0xc0c0, 0,      0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040,
      0x4080, 0x40c0, 0x8000, 0xbf00, 0xbf80, 0xbfc0, 0xc000, 0xc040, 0xc080, 0xc0c0};
  const __m512i table = _mm512_load_si512(numbers);
  const __m512i magnitude = _mm512_set1_epi16(0x7fff);
  const __m512i low = exponents_of(scale[0], scale[1]);
  const __m512i high = exponents_of(scale[2], scale[3]);
  const auto scaled = [&](__m512i words, __m512i exponents) {
    const __m512i value = _mm512_permutexvar_epi16(words, table);
    return _mm512_mask_add_epi16(value, _mm512_test_epi16_mask(value, magnitude), value, exponents);
  };
  for (int i = 0; i < count; ++i, from += 32, out += 32) {
    _mm_prefetch(from + 2048, _MM_HINT_T0);
    const __m512i words = widened_bytes(from);
    _mm512_storeu_si512(out, scaled(words, low));
    _mm512_storeu_si512(out + 16, scaled(_mm512_srli_epi16(words, 4), high));
  }
}

/// The bfloat16 that each E4M3 code of no sign times a scale comes to: upper and lower bytes.
struct ByteTables {
  __m512i upper[2];
  __m512i lower[2];
};

inline ByteTables byte_tables(const float (&numbers)[128], float scale) {
  ByteTables tables;
  const Vec factor = broadcast(scale);
  for (int half = 0; half < 2; ++half) {
    __m256i upper[2];
    __m256i lower[2];
    for (int i = 0; i < 2; ++i) {
      const float* at = numbers + 64 * half + 32 * i;
      const auto words = reinterpret_cast<__m512i>(
          _mm512_cvtne2ps_pbh(load(at + lanes) * factor, load(at) * factor));
      lower[i] = _mm512_cvtepi16_epi8(words);
      upper[i] = _mm512_cvtepi16_epi8(_mm512_srli_epi16(words, 8));
    }
    tables.upper[half] = _mm512_inserti64x4(_mm512_castsi256_si512(upper[0]), upper[1], 1);
    tables.lower[half] = _mm512_inserti64x4(_mm512_castsi256_si512(lower[0]), lower[1], 1);
  }
  return tables;
}

/// fp8_to_pairs() where all columns have one scale: codes are looked up. Needs AVX-512 VBMI.
[[gnu::target("avx512vbmi")]] inline void fp8_to_pairs_by_table(const ByteTables& tables,
                                                                const char* from, int count,
                                                                Bf16Pair* out) {
  const __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80));
  const __m512i first = _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0);
  const __m512i second = _mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4);
  for (int i = 0; i < count; ++i, from += 64, out += 32) {
    _mm_prefetch(from + 2048, _MM_HINT_T0);
    const __m512i codes = _mm512_loadu_si512(from);
    const __m512i lower = _mm512_permutex2var_epi8(tables.lower[0], codes, tables.lower[1]);
    __m512i upper = _mm512_permutex2var_epi8(tables.upper[0], codes, tables.upper[1]);
    upper = _mm512_ternarylogic_epi64(upper, codes, sign, 0x78);  // upper ^ (codes & sign)
    const __m512i low = _mm512_unpacklo_epi8(lower, upper);
    const __m512i high = _mm512_unpackhi_epi8(lower, upper);
    _mm512_storeu_si512(out, _mm512_permutex2var_epi64(low, first, high));
    _mm512_storeu_si512(out + 16, _mm512_permutex2var_epi64(low, second, high));
  }
}

}  // namespace
}  // namespace atl::compute
