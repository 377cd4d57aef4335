#pragma once
// Row kernels, included once per instruction set (see simd.hpp for why all is anonymous).

#include <cmath>
#include <limits>

#include "compute/cpu/kernels.hpp"
#include "compute/cpu/kernels/attention.hpp"
#include "compute/cpu/kernels/panels.hpp"
#include "compute/cpu/kernels/simd.hpp"

namespace atl::compute {
namespace {

/// Loads `count` elements at p: one vector, zeros beyond.
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
void rms_norm(const void* x, const float* weight, float eps, void* out, std::int64_t rows,
              int width) {
  for (std::int64_t r = 0; r < rows; ++r) {
    const T* from = static_cast<const T*>(x) + r * width;
    T* to = static_cast<T*>(out) + r * width;
    const Vec scale = broadcast(inverse_rms(from, width, eps));
    for (int i = 0; i < width; i += lanes) {
      store(to + i, load(from + i, width - i) * scale * load(weight + i, width - i), width - i);
    }
  }
}

template <class T>
void add(void* x, const void* y, std::int64_t count) {
  T* to = static_cast<T*>(x);
  const T* from = static_cast<const T*>(y);
  for (std::int64_t i = 0; i < count; i += lanes) {
    store(to + i, load(to + i, count - i) + load(from + i, count - i), count - i);
  }
}

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

/// Fills e^(x - max) over x and returns their sum; lanes are added in a fixed order.
inline double exponentials(float* x, std::int64_t count) {
  Vec top = broadcast(x[0]);
  for (std::int64_t i = 0; i < count; i += lanes) {
    top = max(top, first_lanes(static_cast<int>(count - i < lanes ? count - i : lanes),
                               load(x + i, count - i), top));
  }
  const Vec highest = broadcast(largest(top));
  double total = 0;
  for (std::int64_t i = 0; i < count; i += lanes) {
    const Vec e = exp(load(x + i, count - i) - highest);
    store(x + i, e, count - i);
    total +=
        sum(first_lanes(static_cast<int>(count - i < lanes ? count - i : lanes), e, broadcast(0)));
  }
  return total;
}

/// Where a logit is NaN or plus infinity every probability is NaN, and the lowest experts are
/// taken.
inline void top_k(float* logits, int num_experts, int top_k, bool renormalise,
                  std::int32_t* experts, float* weights) {
  const float total = static_cast<float>(exponentials(logits, num_experts));
  for (int e = 0; e < num_experts; ++e) logits[e] /= total;
  float chosen = 0;
  for (int j = 0; j < top_k; ++j) {
    int best = -1;
    for (int e = 0; e < num_experts; ++e) {
      bool taken = false;
      for (int i = 0; i < j; ++i) taken = taken || experts[i] == e;
      if (!taken && (best < 0 || logits[e] > logits[best])) best = e;
    }
    experts[j] = best;
    weights[j] = logits[best];
    chosen += logits[best];
  }
  for (int j = 0; renormalise && j < top_k; ++j) weights[j] /= chosen;
}

template <class T>
void merge(void* x, const void* rows, const std::int32_t* slots, const float* weights, int top_k,
           int width) {
  T* to = static_cast<T*>(x);
  for (int i = 0; i < width; i += lanes) {
    Vec total = broadcast(0);
    for (int j = 0; j < top_k; ++j) {
      const T* row = static_cast<const T*>(rows) + std::int64_t{slots[j]} * width;
      total = fma(broadcast(weights[j]), load(row + i, width - i), total);
    }
    alignas(64) T rounded[lanes];
    store(rounded, total);
    store(to + i, load(to + i, width - i) + load(rounded), width - i);
  }
}

inline float log_prob(const float* logits, std::int64_t count, std::int64_t target) {
  Vec top = broadcast(logits[0]);
  Vec zero = broadcast(0);  // NaN once a logit is not finite: minus infinity has no weight
  for (std::int64_t i = 0; i + lanes <= count; i += lanes) {
    const Vec x = load(logits + i);
    top = max(top, x);
    zero = zero + (x - x);
  }
  float highest = largest(top);
  float none = sum(zero);
  for (std::int64_t i = count / lanes * lanes; i < count; ++i) {
    highest = logits[i] > highest ? logits[i] : highest;
    none += logits[i] - logits[i];
  }
  double total = none;
  for (std::int64_t i = 0; i < count; i += lanes) {
    const int valid = static_cast<int>(count - i < lanes ? count - i : lanes);
    const Vec e = exp(load(logits + i, count - i) - broadcast(highest));
    total += sum(first_lanes(valid, e, broadcast(0)));
  }
  return static_cast<float>(static_cast<double>(logits[target]) - highest - std::log(total));
}

template <class T>
Kernels make_table(const char* isa) {
  Kernels table;
  table.isa = isa;
  table.rms_norm = &rms_norm<T>;
  table.add = &add<T>;
  table.gelu = &gelu<T>;
  table.swiglu = &swiglu<T>;
  table.to_float = &to_float<T>;
  table.from_float = &from_float<T>;
  table.rope = &rope<T>;
  table.attend = &attend<T>;
  table.top_k = &top_k;
  table.merge = &merge<T>;
  table.log_prob = &log_prob;
  table.panel_columns = panel_columns;
  table.pack_panel = &pack_panel<T>;
  table.panel_gemm = &panel_gemm<T>;
  return table;
}

const Kernels& table_of(DType dtype, const char* isa) {
  static const Kernels bfloat16 = make_table<Bf16>(isa);
  static const Kernels float16 = make_table<F16>(isa);
  static const Kernels float32 = make_table<float>(isa);
  switch (dtype) {
    case DType::bfloat16:
      return bfloat16;
    case DType::float16:
      return float16;
    case DType::float32:
      break;
  }
  return float32;
}

}  // namespace
}  // namespace atl::compute
