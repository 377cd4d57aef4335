#pragma once
// Random numbers that an element type represents, and their bits.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "compute/types.hpp"
#include "tests/reference.hpp"

namespace atl::testing {

inline double to_float32(double value) {
  return static_cast<float>(value);
}

inline reference::Round rounding_of(DType dtype) {
  switch (dtype) {
    case DType::bfloat16:
      return reference::to_bfloat16;
    case DType::float16:
      return reference::to_float16;
    case DType::float32:
    case DType::uint8:
      break;
  }
  return to_float32;
}

/// The bits of values that `dtype` represents exactly.
inline std::vector<std::byte> encode(const std::vector<double>& values, DType dtype) {
  std::vector<std::byte> bytes(values.size() * size_of(dtype));
  for (std::size_t i = 0; i < values.size(); ++i) {
    const auto single = static_cast<float>(values[i]);
    std::uint32_t bits = 0;
    std::memcpy(&bits, &single, 4);
    if (dtype == DType::bfloat16) bits >>= 16;
    if (dtype == DType::float16) {
      const auto half = static_cast<_Float16>(values[i]);
      bits = 0;
      std::memcpy(&bits, &half, 2);
    }
    std::memcpy(bytes.data() + i * size_of(dtype), &bits, size_of(dtype));
  }
  return bytes;
}

inline std::vector<double> decode(const void* data, std::size_t count, DType dtype) {
  std::vector<double> values(count);
  for (std::size_t i = 0; i < count; ++i) {
    const auto* at = static_cast<const char*>(data) + i * size_of(dtype);
    std::uint32_t bits = 0;
    std::memcpy(&bits, at, size_of(dtype));
    if (dtype == DType::float16) {
      _Float16 half = 0;
      std::memcpy(&half, at, 2);
      values[i] = static_cast<double>(half);
      continue;
    }
    if (dtype == DType::bfloat16) bits <<= 16;
    float single = 0;
    std::memcpy(&single, &bits, 4);
    values[i] = single;
  }
  return values;
}

/// Normal numbers, rounded to what `dtype` represents.
class Random {
 public:
  Random(unsigned seed, DType dtype) : generator_(seed), round_(rounding_of(dtype)) {}

  reference::Vector vector(int size, double mean, double deviation) {
    std::normal_distribution<double> normal(mean, deviation);
    reference::Vector values;
    for (int i = 0; i < size; ++i) values.push_back(round_(normal(generator_)));
    return values;
  }
  reference::Matrix matrix(int rows, int cols, double gain = 1) {
    reference::Matrix values;
    for (int r = 0; r < rows; ++r) values.push_back(vector(cols, 0, gain / std::sqrt(cols)));
    return values;
  }
  std::vector<std::int32_t> tokens(int count, int vocab) {
    std::uniform_int_distribution<std::int32_t> any(0, vocab - 1);
    std::vector<std::int32_t> values;
    for (int i = 0; i < count; ++i) values.push_back(any(generator_));
    return values;
  }

 private:
  std::mt19937 generator_;
  reference::Round round_;
};

}  // namespace atl::testing
