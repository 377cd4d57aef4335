#include "compute/coding.hpp"

#include <array>
#include <cmath>
#include <cstring>
#include <limits>

namespace atl::compute {
namespace {

float e2m1(unsigned bits) {
  constexpr std::array<float, 8> values = {0, 0.5F, 1, 1.5F, 2, 3, 4, 6};
  return (bits & 8U) != 0 ? -values[bits & 7U] : values[bits & 7U];
}

}  // namespace

float fp8_e4m3(std::uint8_t bits) {
  static const std::array<float, 256> table = [] {
    std::array<float, 256> values{};
    for (unsigned code = 0; code < values.size(); ++code) {
      const int exponent = static_cast<int>((code >> 3U) & 15U);
      const int fraction = static_cast<int>(code & 7U);
      float value = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -9)
                                  : std::ldexp(static_cast<float>(8 + fraction), exponent - 10);
      if ((code & 127U) == 127U) value = std::numeric_limits<float>::quiet_NaN();
      values[code] = (code & 128U) != 0 ? -value : value;
    }
    return values;
  }();
  return table[bits];
}

float number_at(Code code, const std::byte* row, std::int64_t col) {
  if (code == Code::fp8) return fp8_e4m3(static_cast<std::uint8_t>(row[col]));
  const unsigned half = (static_cast<unsigned>(row[col / 2]) >> (col % 2 * 4)) & 15U;
  return code == Code::mxfp4 ? e2m1(half) : static_cast<float>(static_cast<int>(half) - 8);
}

float scale_at(Code code, const std::byte* scales, std::int64_t group) {
  if (code == Code::mxfp4) return std::ldexp(1.0F, static_cast<int>(scales[group]) - 127);
  float scale = 0;
  std::memcpy(&scale, scales + group * 4, sizeof scale);
  return scale;
}

}  // namespace atl::compute
