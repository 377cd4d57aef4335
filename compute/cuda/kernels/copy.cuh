#pragma once
// Copying whole rows: one block per row, in the widest unit that all rows allow.

#include "compute/cuda/kernels/device.cuh"

namespace atl::compute::cuda {

inline constexpr int copy_threads = 256;
/// Accesses of one thread that are in flight together.
inline constexpr int in_flight = 4;

/// Writes a row of `units` of type U (16 bytes, or one element), read once, to to(0) .. to(copies -
/// 1); null: not there.
template <class U, class To>
__device__ void copy_row(const U* from, int units, int copies, const To& to) {
  const int step = static_cast<int>(blockDim.x);
  for (int first = static_cast<int>(threadIdx.x); first < units; first += step * in_flight) {
    U held[in_flight];
#pragma unroll
    for (int i = 0; i < in_flight; ++i) {
      if (first + i * step < units) held[i] = from[first + i * step];
    }
    for (int j = 0; j < copies; ++j) {
      U* const copy = to(j);
      if (copy == nullptr) continue;
#pragma unroll
      for (int i = 0; i < in_flight; ++i) {
        if (first + i * step < units) copy[first + i * step] = held[i];
      }
    }
  }
}

/// Calls action(U{}, units per `width` elements) with the widest unit that the rows allow.
template <class Action, class... Pointers>
void with_unit(DType dtype, int width, Action&& action, Pointers... pointers) {
  const std::size_t bytes = static_cast<std::size_t>(width) * size_of(dtype);
  if (rows_are_aligned(bytes, pointers...)) {
    action(uint4{}, static_cast<int>(bytes / access_bytes));
  } else if (dtype == DType::float32) {
    action(std::uint32_t{}, width);
  } else {
    action(std::uint16_t{}, width);
  }
}

}  // namespace atl::compute::cuda
