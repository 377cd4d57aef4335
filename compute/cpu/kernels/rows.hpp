#pragma once
// Rows added, and turned from one element type into another, included once per instruction set (see
// simd.hpp for why all is anonymous).

#include <cstdint>

#include "compute/cpu/kernels/simd.hpp"

namespace atl::compute {
namespace {

template <class T>
void add(float* x, const void* y, std::int64_t count) {
  const T* from = static_cast<const T*>(y);
  for (std::int64_t i = 0; i < count; i += lanes) {
    store(x + i, load(x + i, count - i) + load(from + i, count - i), count - i);
  }
}

inline void add_floats(float* x, const float* y, std::int64_t count) {
  add<float>(x, y, count);
}

inline void scale(float* x, float factor, std::int64_t count) {
  for (std::int64_t i = 0; i < count; i += lanes) {
    store(x + i, load(x + i, count - i) * broadcast(factor), count - i);
  }
}

/// Of rows of F, rounded to T.
template <class T, class F>
void add_sum(float* x, const void* rows, std::int64_t stride, const void* own, int place,
             int members, int width) {
  for (int i = 0; i < width; i += lanes) {
    Vec total = broadcast(0);
    for (int m = 0; m < members; ++m) {
      const F* row = static_cast<const F*>(m == place ? own : rows);
      if (m != place) row += m * stride;
      total = total + load(row + i, width - i);
    }
    alignas(64) T rounded[lanes];
    store(rounded, total);
    store(x + i, load(x + i, width - i) + load(rounded), width - i);
  }
}

template <class T>
void to_float(const void* in, float* out, std::int64_t count) {
  const T* from = static_cast<const T*>(in);
  for (std::int64_t i = 0; i < count; i += lanes) {
    store(out + i, load(from + i, count - i), count - i);
  }
}

template <class T>
void from_float(const float* in, void* out, std::int64_t count) {
  T* to = static_cast<T*>(out);
  for (std::int64_t i = 0; i < count; i += lanes) {
    store(to + i, load(in + i, count - i), count - i);
  }
}

}  // namespace
}  // namespace atl::compute
