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

/// By the mean of the squares. NaN where that is not finite: 0, the inverse of infinity, would hide
/// an overflow.
inline float inverse_rms(float mean, float eps) {
  const float inverse = 1.0F / std::sqrt(mean + eps);
  return inverse > 0 ? inverse : std::numeric_limits<float>::quiet_NaN();
}

template <class T>
float inverse_rms(const T* x, std::int64_t width, float eps) {
  return inverse_rms(sum_of_squares(x, width) / static_cast<float>(width), eps);
}

template <class T>
void head_squares(const void* row, int num_heads, int head_dim, float* out) {
  const T* heads = static_cast<const T*>(row);
  for (int h = 0; h < num_heads; ++h) out[h] = sum_of_squares(heads + h * head_dim, head_dim);
}

/// Over all heads of a row: sums of heads, added in their order, so that ranks may make some each.
template <class T>
float mean_square_of_heads(const T* heads, int num_heads, int head_dim) {
  float total = 0;
  for (int h = 0; h < num_heads; ++h) total += sum_of_squares(heads + h * head_dim, head_dim);
  return total / static_cast<float>(num_heads * head_dim);
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

template <class T>
void norm_in_place(void* x, const float* weight, float eps, std::int64_t rows, int width,
                   std::int64_t stride) {
  for (std::int64_t r = 0; r < rows; ++r) {
    T* row = static_cast<T*>(x) + r * stride;
    const Vec scale = broadcast(inverse_rms(row, width, eps));
    for (int i = 0; i < width; i += lanes) {
      store(row + i, load(row + i, width - i) * scale * load(weight + i, width - i), width - i);
    }
  }
}

}  // namespace
}  // namespace atl::compute
