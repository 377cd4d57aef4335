#include "io/convert.hpp"

#include <cmath>
#include <cstring>

#include "compute/error.hpp"

namespace atl::io {
namespace {

float load(const std::byte* from, DType type) {
  if (type == DType::float32) {
    float value = 0;
    std::memcpy(&value, from, sizeof value);
    return value;
  }
  std::uint16_t bits = 0;
  std::memcpy(&bits, from, sizeof bits);
  return type == DType::bfloat16 ? float_of_bfloat16(bits) : float_of_float16(bits);
}

/// Stores and returns the value as stored.
float store(float value, std::byte* to, DType type) {
  if (type == DType::float32) {
    std::memcpy(to, &value, sizeof value);
    return value;
  }
  const bool brain = type == DType::bfloat16;
  const std::uint16_t bits = brain ? bfloat16_of(value) : float16_of(value);
  std::memcpy(to, &bits, sizeof bits);
  return brain ? float_of_bfloat16(bits) : float_of_float16(bits);
}

}  // namespace

std::uint16_t float16_of(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000U;
  const std::uint32_t magnitude = bits & 0x7fffffffU;
  std::uint32_t result = 0;
  if (magnitude > 0x7f800000U) {
    result = 0x7e00U;  // NaN
  } else if (magnitude >= 0x477ff000U) {
    result = 0x7c00U;  // 65520 and above round to infinity
  } else if (magnitude < 0x38800000U) {
    // Below 2^-14 halves are multiples of 2^-24. Adding 0.5, whose last bit is worth 2^-24, lets
    // the float adder round to one of them.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5F;
    result = std::bit_cast<std::uint32_t>(shifted) - std::bit_cast<std::uint32_t>(0.5F);
  } else {
    const std::uint32_t odd = (magnitude >> 13) & 1U;
    result = (magnitude - 0x38000000U + 0xfffU + odd) >> 13;
  }
  return static_cast<std::uint16_t>(sign | result);
}

float float_of_float16(std::uint16_t bits) {
  const std::uint32_t sign = (bits & 0x8000U) << 16;
  const std::uint32_t magnitude = bits & 0x7fffU;
  if (magnitude >= 0x7c00U) {
    return std::bit_cast<float>(sign | 0x7f800000U | ((magnitude & 0x3ffU) << 13));
  }
  if (magnitude < 0x400U) {
    const float value = static_cast<float>(magnitude) * 0x1p-24F;
    return sign == 0 ? value : -value;
  }
  return std::bit_cast<float>(sign | ((magnitude << 13) + 0x38000000U));
}

void convert(std::span<const std::byte> from, DType from_type, std::span<std::byte> to,
             DType to_type) {
  const std::size_t elements = from.size() / size_of(from_type);
  require(elements * size_of(to_type) == to.size() && elements * size_of(from_type) == from.size(),
          "cannot convert {} bytes of {} to {} bytes of {}", from.size(), name_of(from_type),
          to.size(), name_of(to_type));
  if (from_type == to_type) {
    if (!from.empty()) std::memcpy(to.data(), from.data(), from.size());
    return;
  }
  for (std::size_t i = 0; i < elements; ++i) {
    const float value = load(from.data() + i * size_of(from_type), from_type);
    const float stored = store(value, to.data() + i * size_of(to_type), to_type);
    require(!std::isinf(stored) || std::isinf(value),
            "element {} is {}, too large for {}; convert to bfloat16 or float32", i, value,
            name_of(to_type));
  }
}

}  // namespace atl::io
