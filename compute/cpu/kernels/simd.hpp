#pragma once
// Vectors of float32 as wide as the instruction set this file is compiled for. Included by the
// kernels/<isa>.cpp only; everything is in an anonymous namespace, because the same names mean
// different instructions in each of them.

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "compute/cpu/kernels/elements.hpp"

namespace atl::compute {
namespace {

#if defined(ATL_SIMD_OF_LOOPS)  // tests/compute/simd_of_loops.hpp came before
#elif defined(__AVX512F__)

constexpr int lanes = 16;
using Vec = __m512;

inline Vec broadcast(float x) {
  return _mm512_set1_ps(x);
}
inline Vec fma(Vec a, Vec b, Vec c) {
  return _mm512_fmadd_ps(a, b, c);
}
inline Vec max(Vec a, Vec b) {
  return _mm512_max_ps(a, b);
}
inline Vec min(Vec a, Vec b) {
  return _mm512_min_ps(a, b);
}
inline float sum(Vec a) {
  return _mm512_reduce_add_ps(a);
}
inline float largest(Vec a) {
  return _mm512_reduce_max_ps(a);
}
inline Vec round_to_int(Vec a) {
  return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
/// a * 2^n for integral n >= -126.
inline Vec scale_by_power(Vec a, Vec n) {
  return _mm512_scalef_ps(a, n);
}
/// The first `count` lanes of a, `other` in the rest.
inline Vec first_lanes(int count, Vec a, Vec other) {
  return _mm512_mask_blend_ps(static_cast<__mmask16>((1U << count) - 1U), other, a);
}

inline Vec load(const float* p) {
  return _mm512_loadu_ps(p);
}
inline Vec load(const Bf16* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
inline Vec load(const F16* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline void store(float* p, Vec a) {
  _mm512_storeu_ps(p, a);
}
inline void store(F16* p, Vec a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline void store(Bf16* p, Vec a) {
#if defined(__AVX512BF16__)
  const __m256i bits = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(a));
#else
  const __m512i u = _mm512_castps_si512(a);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  const __m512i rounded =
      _mm512_srli_epi32(_mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
  const __m256i bits =
      _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc0)));
#endif
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), bits);
}
/// Numbers of E4M3 over 256: shifted, its fields are those of half precision. NaN becomes +-1.875,
/// which no number gives.
inline Vec load_e4m3(const std::uint8_t* p) {
  const __m256i words = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm512_cvtph_ps(
      _mm256_and_si256(_mm256_slli_epi16(words, 7), _mm256_set1_epi16(static_cast<short>(0xbfff))));
}
/// Numbers of four bits by a table of the upper bytes of halves: of the low halves of `lanes`
/// bytes, and of the high ones.
inline void load_by_table(const std::uint8_t* p, const std::uint8_t (&table)[16], Vec& low,
                          Vec& high) {
  const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  const __m128i mask = _mm_set1_epi8(15);
  const auto widened = [halves](__m128i index) {
    return _mm512_cvtph_ps(
        _mm256_slli_epi16(_mm256_cvtepu8_epi16(_mm_shuffle_epi8(halves, index)), 8));
  };
  low = widened(_mm_and_si128(bytes, mask));
  high = widened(_mm_and_si128(_mm_srli_epi16(bytes, 4), mask));
}
/// Pairs (even, odd) of bfloat16, 16 of them: the even or odd ones as float32.
inline Vec load_even(const Bf16* p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16));
}
inline Vec load_odd(const Bf16* p) {
  return _mm512_castsi512_ps(
      _mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi32(static_cast<int>(0xffff0000U))));
}

#if defined(__AVX512BF16__)
#define ATL_BF16_PAIRS
/// 16 pairs of bfloat16.
using Pairs = __m512bh;

inline Pairs load_pairs(const Bf16* p) {
  return reinterpret_cast<Pairs>(_mm512_loadu_si512(p));
}
inline Pairs broadcast_pair(const Bf16* p) {
  std::int32_t pair = 0;
  std::memcpy(&pair, p, sizeof(pair));
  return reinterpret_cast<Pairs>(_mm512_set1_epi32(pair));
}
inline Pairs broadcast(Bf16Pair pair) {
  return broadcast_pair(pair.of);
}
/// sum + a * b of both numbers of each pair, of exact products.
inline Vec dot(Vec sum, Pairs a, Pairs b) {
  return _mm512_dpbf16_ps(sum, a, b);
}
inline Vec fma(Pairs a, Pairs b, Vec sum) {
  return dot(sum, a, b);
}
#endif

#else

constexpr int lanes = 8;
using Vec = __m256;

inline Vec broadcast(float x) {
  return _mm256_set1_ps(x);
}
inline Vec fma(Vec a, Vec b, Vec c) {
  return _mm256_fmadd_ps(a, b, c);
}
inline Vec max(Vec a, Vec b) {
  return _mm256_max_ps(a, b);
}
inline Vec min(Vec a, Vec b) {
  return _mm256_min_ps(a, b);
}
inline float sum(Vec a) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
inline float largest(Vec a) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}
inline Vec round_to_int(Vec a) {
  return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline Vec scale_by_power(Vec a, Vec n) {
  const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
  // Two halves keep 2^n finite where n is 128 and a is below 1.
  const __m256i half = _mm256_slli_epi32(_mm256_srai_epi32(_mm256_srai_epi32(exponent, 23), 1), 23);
  const Vec first = _mm256_castsi256_ps(_mm256_add_epi32(half, _mm256_set1_epi32(0x3f800000)));
  const Vec second = _mm256_castsi256_ps(
      _mm256_add_epi32(_mm256_sub_epi32(exponent, half), _mm256_set1_epi32(0x3f800000)));
  return _mm256_mul_ps(_mm256_mul_ps(a, first), second);
}
inline Vec first_lanes(int count, Vec a, Vec other) {
  const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(count), index);
  return _mm256_blendv_ps(other, a, _mm256_castsi256_ps(mask));
}

inline Vec load(const float* p) {
  return _mm256_loadu_ps(p);
}
inline Vec load(const Bf16* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
inline Vec load(const F16* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline void store(float* p, Vec a) {
  _mm256_storeu_ps(p, a);
}
inline void store(F16* p, Vec a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline void store(Bf16* p, Vec a) {
  const __m256i u = _mm256_castps_si256(a);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  __m256i rounded =
      _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  rounded = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), nan);
  const __m128i packed =
      _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
}
inline Vec load_e4m3(const std::uint8_t* p) {
  const __m128i words = _mm_cvtepi8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  return _mm256_cvtph_ps(
      _mm_and_si128(_mm_slli_epi16(words, 7), _mm_set1_epi16(static_cast<short>(0xbfff))));
}
inline void load_by_table(const std::uint8_t* p, const std::uint8_t (&table)[16], Vec& low,
                          Vec& high) {
  const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  const __m128i mask = _mm_set1_epi8(15);
  const auto widened = [halves](__m128i index) {
    return _mm256_cvtph_ps(_mm_slli_epi16(_mm_cvtepu8_epi16(_mm_shuffle_epi8(halves, index)), 8));
  };
  low = widened(_mm_and_si128(bytes, mask));
  high = widened(_mm_and_si128(_mm_srli_epi16(bytes, 4), mask));
}
inline Vec load_even(const Bf16* p) {
  const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
}
inline Vec load_odd(const Bf16* p) {
  const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm256_castsi256_ps(
      _mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xffff0000U))));
}

#endif

/// Loads `count` <= lanes elements, zeros in the rest; never reads beyond them.
template <class T>
inline Vec load(const T* p, std::int64_t count) {
  if (count >= lanes) return load(p);
  alignas(64) T buffer[lanes] = {};
  std::memcpy(buffer, p, static_cast<std::size_t>(count) * sizeof(T));
  return load(buffer);
}

/// Stores the first `count` <= lanes elements.
template <class T>
inline void store(T* p, Vec a, std::int64_t count) {
  if (count >= lanes) return store(p, a);
  alignas(64) T buffer[lanes];
  store(buffer, a);
  std::memcpy(p, buffer, static_cast<std::size_t>(count) * sizeof(T));
}

/// e^x with a relative error below 2e-7, for x clamped to [-87, 88]. NaN stays NaN.
inline Vec exp(Vec x) {
  // min and max return their second operand when one is NaN, so x goes second.
  const Vec clamped = min(broadcast(88.0F), max(broadcast(-87.0F), x));
  const Vec n = round_to_int(clamped * broadcast(1.44269504088896341F));
  Vec r = fma(n, broadcast(-0.693359375F), clamped);
  r = fma(n, broadcast(2.12194440e-4F), r);
  Vec y = broadcast(1.9875691500e-4F);
  y = fma(y, r, broadcast(1.3981999507e-3F));
  y = fma(y, r, broadcast(8.3334519073e-3F));
  y = fma(y, r, broadcast(4.1665795894e-2F));
  y = fma(y, r, broadcast(1.6666665459e-1F));
  y = fma(y, r, broadcast(5.0000001201e-1F));
  y = fma(y, r * r, r) + broadcast(1.0F);
  return scale_by_power(y, n);
}

}  // namespace
}  // namespace atl::compute
