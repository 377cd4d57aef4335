#pragma once
// The experts' rows merged into the residual stream, included once per instruction set (see
// simd.hpp for why all is anonymous).

#include <algorithm>
#include <cstdint>

#include "compute/cpu/kernels/simd.hpp"

namespace atl::compute {
namespace {

/// Lanes i.. of round(sum_j weights[j] * rows[slots[j]]), in `rounded`.
template <class T>
void sum_rows(const void* rows, const std::int32_t* slots, const float* weights, int top_k,
              int width, int i, T* rounded) {
  Vec total = broadcast(0);
  for (int j = 0; j < top_k; ++j) {
    const T* row = static_cast<const T*>(rows) + std::int64_t{slots[j]} * width;
    total = fma(broadcast(weights[j]), load(row + i, width - i), total);
  }
  store(rounded, total);
}

template <class T>
void merge(float* x, const void* rows, const std::int32_t* slots, const float* weights, int top_k,
           int width) {
  for (int i = 0; i < width; i += lanes) {
    alignas(64) T rounded[lanes];
    sum_rows(rows, slots, weights, top_k, width, i, rounded);
    store(x + i, load(x + i, width - i) + load(rounded), width - i);
  }
}

template <class T>
void fold(void* out, const void* rows, const std::int32_t* slots, const float* weights, int top_k,
          int width) {
  for (int i = 0; i < width; i += lanes) {
    alignas(64) T rounded[lanes];
    sum_rows(rows, slots, weights, top_k, width, i, rounded);
    std::copy_n(rounded, std::min(lanes, width - i), static_cast<T*>(out) + i);
  }
}

}  // namespace
}  // namespace atl::compute
