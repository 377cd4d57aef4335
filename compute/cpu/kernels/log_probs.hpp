#pragma once
// Log-probability of a token, included once per instruction set (see simd.hpp for why all is
// anonymous).

#include <cmath>
#include <cstdint>

#include "compute/cpu/kernels/simd.hpp"

namespace atl::compute {
namespace {

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

}  // namespace
}  // namespace atl::compute
