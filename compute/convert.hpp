#pragma once
// Conversion of elements between float types, one at a time: for files, tests and a few values. The
// kernels of a backend convert whole activations.

#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "compute/coding.hpp"
#include "compute/types.hpp"

namespace atl::compute {

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

/// Every element as float32.
void to_float(const void* from, DType type, std::span<float> to);
/// Every element rounded from float32; too large values become infinite.
void from_float(std::span<const float> from, void* to, DType type);

/// Elements of a tensor that are NaN, infinite, or too large for the type they will be used in.
struct NonFinite {
  std::int64_t count = 0;
  std::int64_t num_nan = 0;       ///< of these
  std::int64_t num_infinite = 0;  ///< of these; the others are too large
  std::int64_t first = 0;         ///< element at which the first of them is
  /// Adds those of the elements that follow, `offset` elements after this tensor's first.
  void add(const NonFinite& later, std::int64_t offset);
};
/// Looks through `bytes`, elements of `type` that will be used as `used_as`, about as fast as
/// memory can be read; empty where all are finite and stay so.
std::optional<NonFinite> find_non_finite(std::span<const std::byte> bytes, DType type,
                                         DType used_as);
inline std::optional<NonFinite> find_non_finite(std::span<const std::byte> bytes, DType type) {
  return find_non_finite(bytes, type, type);
}
/// The same of codes: E4M3 has NaN, the others have not.
std::optional<NonFinite> find_nan_codes(std::span<const std::byte> bytes, Code code);
/// The same of codes' scales, for elements of `type` that will be used as `used_as`. As infinite
/// counts a scale with which the code's largest number is so in `type`, as too large one with which
/// it is so only in `used_as`: the numbers that are there may be smaller.
std::optional<NonFinite> find_non_finite_scales(std::span<const std::byte> scales, Code code,
                                                DType type, DType used_as);

/// For a message, e.g. "2 values that are not finite (1 NaN, 1 infinite), the first at [3, 0, 7]";
/// `shape` is that of the whole tensor.
std::string text_of(const NonFinite& found, std::span<const std::int64_t> shape);

}  // namespace atl::compute
