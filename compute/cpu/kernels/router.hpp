#pragma once
// The choice of experts, included once per instruction set (see simd.hpp for why all is anonymous).

#include <cstdint>

#include "compute/cpu/kernels/simd.hpp"

namespace atl::compute {
namespace {

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

/// Fills softmax(logits) over them.
inline void softmax(float* logits, int num_experts) {
  const float total = static_cast<float>(exponentials(logits, num_experts));
  for (int e = 0; e < num_experts; ++e) logits[e] /= total;
}

/// Where a logit is NaN or plus infinity every probability is NaN, and the lowest experts are
/// taken.
inline void top_k(float* logits, int num_experts, int top_k, bool renormalise,
                  std::int32_t* experts, float* weights) {
  softmax(logits, num_experts);
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

inline void weights_of(float* logits, int num_experts, int top_k, bool renormalise,
                       const std::int32_t* experts, float* weights) {
  softmax(logits, num_experts);
  float chosen = 0;
  for (int j = 0; j < top_k; ++j) chosen += weights[j] = logits[experts[j]];
  for (int j = 0; renormalise && j < top_k; ++j) weights[j] /= chosen;
}

}  // namespace
}  // namespace atl::compute
