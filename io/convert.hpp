#pragma once
// Conversion of stored elements between float types.

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

#include "compute/types.hpp"

namespace atl::io {

/// Rounds to the nearest bfloat16, ties to even; NaN stays NaN.
inline std::uint16_t bfloat16_of(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffU) > 0x7f800000U) return static_cast<std::uint16_t>((bits >> 16) | 0x40U);
  return static_cast<std::uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
}

inline float float_of_bfloat16(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

/// Rounds to the nearest IEEE half, ties to even; NaN stays NaN, too large values become infinite.
std::uint16_t float16_of(float value);
float float_of_float16(std::uint16_t bits);

/// Converts every element of `from` into `to`, which has the same number of elements. Throws Error
/// when a finite value would become infinite.
void convert(std::span<const std::byte> from, DType from_type, std::span<std::byte> to,
             DType to_type);

}  // namespace atl::io
