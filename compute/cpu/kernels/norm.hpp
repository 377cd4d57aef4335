#pragma once
// RMSNorm, included once per instruction set (see simd.hpp for why all is anonymous).

#include <cmath>
#include <limits>

#include "compute/cpu/kernels/simd.hpp"

namespace atl::compute {
namespace {

template <class T>
float sum_of_squares(const T* x, std::int64_t width) {
  Vec total = broadcast(0);
  for (std::int64_t i = 0; i < width; i += lanes) {
    const Vec v = load(x + i, width - i);
    total = fma(v, v, total);
  }
  return sum(total);
}

/// NaN where the squares are not finite: 0, the inverse of infinity, would hide an overflow.
template <class T>
float inverse_rms(const T* x, std::int64_t width, float eps) {
  const float mean = sum_of_squares(x, width) / static_cast<float>(width);
  const float inverse = 1.0F / std::sqrt(mean + eps);
  return inverse > 0 ? inverse : std::numeric_limits<float>::quiet_NaN();
}

template <class T>
void rms_norm(const float* x, const float* weight, float eps, void* out, std::int64_t rows,
              int width) {
  for (std::int64_t r = 0; r < rows; ++r) {
    const float* from = x + r * width;
    T* to = static_cast<T*>(out) + r * width;
    const Vec scale = broadcast(inverse_rms(from, width, eps));
    for (int i = 0; i < width; i += lanes) {
      store(to + i, load(from + i, width - i) * scale * load(weight + i, width - i), width - i);
    }
  }
}

}  // namespace
}  // namespace atl::compute
