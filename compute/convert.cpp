#include "compute/convert.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "compute/error.hpp"

namespace atl::compute {
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

/// Counts elements whose magnitude, as bits, is `limit` or more. Blocks are first asked whether
/// they hold any such element, which vector instructions answer.
template <class Bits>
NonFinite count_from(std::span<const std::byte> bytes, Bits limit, Bits infinity) {
  constexpr std::size_t block = 4096;
  constexpr auto magnitude = static_cast<Bits>(static_cast<Bits>(~Bits{0}) >> 1U);
  const auto to_sign = static_cast<Bits>(magnitude + 1U - limit);  // from `limit` to the sign's bit
  const std::size_t elements = bytes.size() / sizeof(Bits);
  NonFinite found;
  Bits values[block];
  for (std::size_t begin = 0; begin < elements; begin += block) {
    const std::size_t size = std::min(block, elements - begin);
    std::memcpy(values, bytes.data() + begin * sizeof(Bits), size * sizeof(Bits));
    Bits any = 0;
    for (std::size_t i = 0; i < size; ++i) {
      any |= static_cast<Bits>((values[i] & magnitude) + to_sign);
    }
    if (any <= magnitude) continue;
    for (std::size_t i = 0; i < size; ++i) {
      const auto value = static_cast<Bits>(values[i] & magnitude);
      if (value < limit) continue;
      if (found.count == 0) found.first = static_cast<std::int64_t>(begin + i);
      ++found.count;
      if (value > infinity) ++found.num_nan;
      if (value == infinity) ++found.num_infinite;
    }
  }
  return found;
}

/// The least magnitude of a float32 that becomes infinite as `type`, as bits.
std::uint32_t overflow_of(DType type) {
  return type == DType::float16 ? 0x477ff000U : type == DType::bfloat16 ? 0x7f7f8000U : 0x7f800000U;
}

/// The least scale with which the code's largest number becomes infinite as `type`, as bits.
std::uint32_t overflow_of_scale(Code code, DType type) {
  const float largest_number = code == Code::fp8 ? 448.0F : code == Code::mxfp4 ? 6.0F : 8.0F;
  std::uint32_t below = 0;
  std::uint32_t limit = overflow_of(type);
  while (limit - below > 1) {
    const std::uint32_t middle = below + (limit - below) / 2;
    const float product = std::bit_cast<float>(middle) * largest_number;
    (std::bit_cast<std::uint32_t>(product) < overflow_of(type) ? below : limit) = middle;
  }
  return limit;
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

void to_float(const void* from, DType type, std::span<float> to) {
  const auto* at = static_cast<const std::byte*>(from);
  for (float& value : to) {
    value = load(at, type);
    at += size_of(type);
  }
}

void from_float(std::span<const float> from, void* to, DType type) {
  auto* at = static_cast<std::byte*>(to);
  for (const float value : from) {
    store(value, at, type);
    at += size_of(type);
  }
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
    if (!std::isinf(stored) || std::isinf(value)) continue;
    const bool fits_bfloat16 = !std::isinf(float_of_bfloat16(bfloat16_of(value)));
    fail("element {} is {} ({}), too large for {}; convert to {}", i, value, name_of(from_type),
         name_of(to_type), fits_bfloat16 ? "bfloat16 or float32" : "float32");
  }
}

void NonFinite::add(const NonFinite& later, std::int64_t offset) {
  if (later.count > 0 && (count == 0 || later.first + offset < first)) first = later.first + offset;
  count += later.count;
  num_nan += later.num_nan;
  num_infinite += later.num_infinite;
}

std::optional<NonFinite> find_non_finite(std::span<const std::byte> bytes, DType type,
                                         DType used_as) {
  NonFinite found;
  if (type == DType::float32) {
    found = count_from<std::uint32_t>(bytes, overflow_of(used_as), 0x7f800000U);
  } else if (type == DType::bfloat16) {
    // Its bits are the upper half of a float32's; what lies between two of them counts as the
    // upper.
    const std::uint32_t limit = used_as == DType::float16 ? overflow_of(used_as) : 0x7f800000U;
    found = count_from<std::uint16_t>(bytes, static_cast<std::uint16_t>((limit + 0xffffU) >> 16U),
                                      0x7f80U);
  } else {
    found = count_from<std::uint16_t>(bytes, 0x7c00U, 0x7c00U);
  }
  if (found.count == 0) return std::nullopt;
  return found;
}

std::optional<NonFinite> find_nan_codes(std::span<const std::byte> bytes, Code code) {
  if (code != Code::fp8) return std::nullopt;
  const NonFinite found = count_from<std::uint8_t>(bytes, 0x7f, 0x7e);
  if (found.count == 0) return std::nullopt;
  return found;
}

std::optional<NonFinite> find_non_finite_scales(std::span<const std::byte> scales, Code code,
                                                DType type, DType used_as) {
  std::vector<std::uint32_t> powers;
  if (code == Code::mxfp4) {  // exponents of float32s; 0xff stands for NaN
    powers.reserve(scales.size());
    for (const std::byte scale : scales) {
      const auto exponent = static_cast<std::uint32_t>(scale);
      powers.push_back(exponent == 0xffU ? 0x7fc00000U : exponent << 23U);
    }
    scales = std::as_bytes(std::span(powers));
  }
  constexpr std::uint32_t infinity = 0x7f800000U;
  const std::uint32_t stored_limit = overflow_of_scale(code, type);
  const std::uint32_t limit = std::min(stored_limit, overflow_of_scale(code, used_as));
  NonFinite found = count_from(scales, limit, infinity);
  if (found.count == 0) return std::nullopt;
  found.num_infinite = count_from(scales, stored_limit, infinity).count - found.num_nan;
  return found;
}

std::string text_of(const NonFinite& found, std::span<const std::int64_t> shape) {
  std::vector<std::int64_t> index(shape.size());
  std::int64_t left = found.first;
  for (std::size_t dim = shape.size(); dim-- > 0; left /= shape[dim])
    index[dim] = left % shape[dim];
  std::string kinds;
  const auto add = [&kinds](std::int64_t count, const char* name) {
    if (count > 0) kinds += fmt::format("{}{} {}", kinds.empty() ? "" : ", ", count, name);
  };
  add(found.num_nan, "NaN");
  add(found.num_infinite, "infinite");
  add(found.count - found.num_nan - found.num_infinite, "too large");
  return fmt::format("{} value{} not finite ({}), the first at [{}]", found.count,
                     found.count == 1 ? " that is" : "s that are", kinds, fmt::join(index, ", "));
}

}  // namespace atl::compute
