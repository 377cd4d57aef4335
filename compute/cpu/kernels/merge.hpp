#pragma once
// The experts' rows merged into the residual stream, included once per instruction set (see
// simd.hpp for why all is anonymous).

#include <cstdint>

#include "compute/cpu/kernels/simd.hpp"

namespace atl::compute {
namespace {

template <class T>
void merge(float* x, const void* rows, const std::int32_t* slots, const float* weights, int top_k,
           int width) {
  for (int i = 0; i < width; i += lanes) {
    Vec total = broadcast(0);
    for (int j = 0; j < top_k; ++j) {
      const T* row = static_cast<const T*>(rows) + std::int64_t{slots[j]} * width;
      total = fma(broadcast(weights[j]), load(row + i, width - i), total);
    }
    alignas(64) T rounded[lanes];
    store(rounded, total);
    store(x + i, load(x + i, width - i) + load(rounded), width - i);
  }
}

}  // namespace
}  // namespace atl::compute
