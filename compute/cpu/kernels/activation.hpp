#pragma once
// What stands between the GEMMs of an MLP, included once per instruction set (see simd.hpp for why
// all is anonymous).

#include <cstdint>

#include "compute/cpu/kernels/simd.hpp"

namespace atl::compute {
namespace {

/// x / (1 + e^(-z)), without overflow in between.
inline Vec times_sigmoid(Vec x, Vec z) {
  return x / (broadcast(1.0F) + exp(broadcast(0) - z));
}

template <class T>
void gelu(const float* up, void* out, std::int64_t count) {
  T* to = static_cast<T*>(out);
  for (std::int64_t i = 0; i < count; i += lanes) {
    const Vec x = load(up + i, count - i);
    // 0.5 x (1 + tanh(u)) = x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3)
    const Vec twice_u = x * fma(x * x, broadcast(0.07135481282F), broadcast(1.59576912161F));
    store(to + i, times_sigmoid(x, twice_u), count - i);
  }
}

template <class T>
void swiglu(const float* gate, const void* up, void* out, std::int64_t count) {
  T* to = static_cast<T*>(out);
  const T* factor = static_cast<const T*>(up);
  for (std::int64_t i = 0; i < count; i += lanes) {
    const Vec g = load(gate + i, count - i);
    store(to + i, times_sigmoid(g, g) * load(factor + i, count - i), count - i);
  }
}

template <class T>
void swiglu_clamped(const float* gate, const void* up, void* out, std::int64_t count, float limit,
                    float alpha) {
  T* to = static_cast<T*>(out);
  const T* factor = static_cast<const T*>(up);
  const Vec most = broadcast(limit);
  for (std::int64_t i = 0; i < count; i += lanes) {
    const Vec g = min(load(gate + i, count - i), most);
    const Vec u = max(min(load(factor + i, count - i), most), broadcast(0) - most);
    store(to + i, times_sigmoid(g, g * broadcast(alpha)) * (u + broadcast(1.0F)), count - i);
  }
}

}  // namespace
}  // namespace atl::compute
