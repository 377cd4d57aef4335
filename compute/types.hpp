#pragma once
// Element types and host tensors.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "compute/model_shape.hpp"

namespace atl {

/// Element type of weights and activations.
enum class DType : std::uint8_t { bfloat16, float16, float32 };

constexpr std::size_t size_of(DType type) {
  return type == DType::float32 ? 4 : 2;
}

constexpr std::string_view name_of(DType type) {
  switch (type) {
    case DType::bfloat16:
      return "bfloat16";
    case DType::float16:
      return "float16";
    case DType::float32:
      return "float32";
  }
  return "?";
}

/// Row-major matrix (or vector, rows = 1) in host memory, not owned.
struct HostTensor {
  const void* data = nullptr;
  DType dtype = DType::bfloat16;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
};

}  // namespace atl
