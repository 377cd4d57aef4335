#pragma once
// What compute/cpu/kernels/simd.hpp, included after it, needs of an instruction set, for vectors of
// 16 in plain loops:
// the kernels' templates as AVX-512 instantiates them run on any CPU so, with the same bits but for
// instructions that a CPU is free to round otherwise. With ATL_LOOPS_HAVE_PAIRS also what
// avx512_bf16 has, in software.

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>

#include "compute/cpu/kernels/elements.hpp"

#define ATL_SIMD_OF_LOOPS
#if defined(ATL_LOOPS_HAVE_PAIRS)
#define ATL_BF16_PAIRS
#endif

namespace atl::compute {
namespace {

constexpr int lanes = 16;
using Vec = float __attribute__((vector_size(64)));

/// The vector of each(lane).
template <class Each>
inline Vec lanes_of(const Each& each) {
  Vec v;
  for (int i = 0; i < lanes; ++i) v[i] = each(i);
  return v;
}

inline Vec broadcast(float x) {
  return lanes_of([x](int) { return x; });
}
inline Vec fma(Vec a, Vec b, Vec c) {
  return lanes_of([&](int i) { return std::fma(a[i], b[i], c[i]); });
}
// The second operand where one is NaN, as the instructions do.
inline Vec max(Vec a, Vec b) {
  return lanes_of([&](int i) { return a[i] > b[i] ? a[i] : b[i]; });
}
inline Vec min(Vec a, Vec b) {
  return lanes_of([&](int i) { return a[i] < b[i] ? a[i] : b[i]; });
}
inline float sum(Vec a) {
  for (int half = lanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) a[i] += a[i + half];
  }
  return a[0];
}
inline float largest(Vec a) {
  float top = a[0];
  for (int i = 1; i < lanes; ++i) top = top > a[i] ? top : a[i];
  return top;
}
inline Vec round_to_int(Vec a) {
  return lanes_of([&](int i) { return std::nearbyint(a[i]); });
}
inline Vec scale_by_power(Vec a, Vec n) {
  return lanes_of([&](int i) { return std::ldexp(a[i], static_cast<int>(n[i])); });
}
inline Vec first_lanes(int count, Vec a, Vec other) {
  return lanes_of([&](int i) { return i < count ? a[i] : other[i]; });
}

inline float widened(Bf16 x) {
  const std::uint32_t bits = std::uint32_t{x.bits} << 16U;
  float value = 0;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
inline Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
inline Vec load(const Bf16* p) {
  return lanes_of([p](int i) { return widened(p[i]); });
}
inline Vec load(const F16* p) {
  return lanes_of([p](int i) { return _cvtsh_ss(p[i].bits); });
}
inline void store(float* p, Vec a) {
  std::memcpy(p, &a, sizeof(a));
}
inline void store(F16* p, Vec a) {
  for (int i = 0; i < lanes; ++i) p[i].bits = _cvtss_sh(a[i], _MM_FROUND_TO_NEAREST_INT);
}
inline void store(Bf16* p, Vec a) {
  for (int i = 0; i < lanes; ++i) {
    const float value = a[i];
    std::uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof(bits));
    const std::uint32_t rounded = (bits + 0x7fffU + ((bits >> 16U) & 1U)) >> 16U;
    p[i].bits = static_cast<std::uint16_t>(std::isnan(value) ? 0x7fc0U : rounded);
  }
}
inline Vec load_e4m3(const std::uint8_t* p) {
  return lanes_of([p](int i) {
    const int word = static_cast<std::int8_t>(p[i]) * 128;
    return _cvtsh_ss(static_cast<std::uint16_t>(word & 0xbfff));
  });
}
inline void load_by_table(const std::uint8_t* p, const std::uint8_t (&table)[16], Vec& low,
                          Vec& high) {
  const auto widened = [&table](int code) {
    return _cvtsh_ss(static_cast<std::uint16_t>(table[code] << 8));
  };
  low = lanes_of([&](int i) { return widened(p[i] & 15); });
  high = lanes_of([&](int i) { return widened(p[i] >> 4); });
}
inline Vec load_even(const Bf16* p) {
  return lanes_of([p](int i) { return widened(p[2 * i]); });
}
inline Vec load_odd(const Bf16* p) {
  return lanes_of([p](int i) { return widened(p[2 * i + 1]); });
}

#if defined(ATL_BF16_PAIRS)
struct Pairs {
  Bf16 of[2 * lanes];
};
inline Pairs load_pairs(const Bf16* p) {
  Pairs pairs;
  std::memcpy(&pairs, p, sizeof(pairs));
  return pairs;
}
inline Pairs broadcast_pair(const Bf16* p) {
  Pairs pairs;
  for (int i = 0; i < lanes; ++i) std::memcpy(pairs.of + 2 * i, p, 2 * sizeof(Bf16));
  return pairs;
}
inline Pairs broadcast(Bf16Pair pair) {
  return broadcast_pair(pair.of);
}
/// As the instruction: the odd ones first, each multiply-add rounded to nearest, numbers below the
/// smallest normal one taken and given as zero.
inline Vec dot(Vec sum, const Pairs& a, const Pairs& b) {
  const auto flushed = [](float x) {
    return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0F, x) : x;
  };
  return lanes_of([&](int i) {
    float total = flushed(sum[i]);
    for (const int half : {1, 0}) {
      total = flushed(std::fma(flushed(widened(a.of[2 * i + half])),
                               flushed(widened(b.of[2 * i + half])), total));
    }
    return total;
  });
}
inline Vec fma(const Pairs& a, const Pairs& b, Vec sum) {
  return dot(sum, a, b);
}
#endif

}  // namespace
}  // namespace atl::compute
