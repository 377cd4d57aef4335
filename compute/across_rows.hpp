#pragma once
// Rows that go to another node once, whatever the number of that node's experts that want them: a
// token's row, and behind it a tail that says which experts those are.

#include <cstddef>
#include <cstdint>

#include "compute/both.hpp"
#include "compute/types.hpp"

namespace atl::compute {

/// How such a row lies in memory: H elements, then of each of the token's choices, in falling order
/// of weight, its place among those of the node that the row goes to (int32; -1: elsewhere), then
/// their weights (float32). Offsets in bytes.
struct AcrossRow {
  std::int64_t places = 0;
  std::int64_t weights = 0;
  std::int64_t bytes = 0;  ///< from row to row

  ATOLL_BOTH std::int32_t* places_of(void* row) const {
    return reinterpret_cast<std::int32_t*>(static_cast<std::byte*>(row) + places);
  }
  ATOLL_BOTH const std::int32_t* places_of(const void* row) const {
    return reinterpret_cast<const std::int32_t*>(static_cast<const std::byte*>(row) + places);
  }
  ATOLL_BOTH float* weights_of(void* row) const {
    return reinterpret_cast<float*>(static_cast<std::byte*>(row) + weights);
  }
  ATOLL_BOTH const float* weights_of(const void* row) const {
    return reinterpret_cast<const float*>(static_cast<const std::byte*>(row) + weights);
  }
};

constexpr AcrossRow across_row(int hidden, DType dtype, int top_k) {
  constexpr std::int64_t alignment = 16;
  const auto aligned = [](std::int64_t bytes) {
    return (bytes + alignment - 1) / alignment * alignment;
  };
  AcrossRow row;
  row.places = aligned(hidden * static_cast<std::int64_t>(size_of(dtype)));
  row.weights = row.places + top_k * static_cast<std::int64_t>(sizeof(std::int32_t));
  row.bytes = aligned(row.weights + top_k * static_cast<std::int64_t>(sizeof(float)));
  return row;
}

}  // namespace atl::compute
