#pragma once
// Element types and host tensors.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "compute/coding.hpp"
#include "compute/model_shape.hpp"

namespace atl {

/// Element type of weights and activations; uint8 are codes or their scales, on file.
enum class DType : std::uint8_t { bfloat16, float16, float32, uint8 };

constexpr std::size_t size_of(DType type) {
  return type == DType::float32 ? 4 : type == DType::uint8 ? 1 : 2;
}

constexpr std::string_view name_of(DType type) {
  switch (type) {
    case DType::bfloat16:
      return "bfloat16";
    case DType::float16:
      return "float16";
    case DType::float32:
      return "float32";
    case DType::uint8:
      return "uint8";
  }
  return "?";
}

/// Row-major matrix (or vector, rows = 1) in host memory, not owned.
struct HostTensor {
  const void* data = nullptr;  ///< or codes, rows of coding.row_bytes(cols)
  DType dtype = DType::bfloat16;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  Coding coding{};
  const void* scales = nullptr;  ///< of codes, [rows, coding.groups(cols)]
};

}  // namespace atl
