#include "app/sampler.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>

#include "compute/error.hpp"

namespace atl {

double uniform_of(std::uint64_t seed, std::uint64_t index) {
  // Two rounds of the splitmix64 finaliser over both words; it passes through every 64-bit value.
  const auto mix = [](std::uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
    return x ^ (x >> 31);
  };
  const std::uint64_t word =
      mix(mix(seed + 0x9e3779b97f4a7c15ULL) + (index + 1) * 0x9e3779b97f4a7c15ULL);
  return static_cast<double>(word >> 11) * 0x1.0p-53;
}

Sampler::Sampler(int vocab)
    : weights_(static_cast<std::size_t>(vocab)), order_(static_cast<std::size_t>(vocab)) {}

SampledToken Sampler::sample(std::span<const float> logits, const SamplingOptions& options,
                             std::int64_t index) {
  // max_element returns the first of equals: ties go to the lower id.
  const auto best = std::max_element(logits.begin(), logits.end());
  require(std::all_of(logits.begin(), logits.end(), [](float x) { return std::isfinite(x); }),
          "logits are not finite (an activation overflowed); try --dtype float32");
  SampledToken sampled;
  sampled.token = options.temperature > 0 ? draw(logits, options, index)
                                          : static_cast<std::int32_t>(best - logits.begin());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - *best);
  const double chosen = logits[static_cast<std::size_t>(sampled.token)];
  sampled.logprob = static_cast<float>(chosen - *best - std::log(sum));
  return sampled;
}

std::int32_t Sampler::draw(std::span<const float> logits, const SamplingOptions& options,
                           std::int64_t index) {
  const double best = *std::max_element(logits.begin(), logits.end());
  for (std::size_t i = 0; i < logits.size(); ++i) {
    weights_[i] = std::exp((static_cast<double>(logits[i]) - best) / options.temperature);
  }
  std::iota(order_.begin(), order_.end(), 0);
  double total = std::accumulate(weights_.begin(), weights_.end(), 0.0);
  std::size_t kept = order_.size();
  if (options.top_p < 1.0) {
    std::sort(order_.begin(), order_.end(), [this](std::int32_t a, std::int32_t b) {
      const double wa = weights_[static_cast<std::size_t>(a)];
      const double wb = weights_[static_cast<std::size_t>(b)];
      return wa != wb ? wa > wb : a < b;
    });
    const double wanted = options.top_p * total;
    double sum = 0;
    kept = 0;
    while (kept < order_.size() && sum < wanted) {
      sum += weights_[static_cast<std::size_t>(order_[kept++])];
    }
    kept = std::max<std::size_t>(kept, 1);
    total = sum > 0 ? sum : weights_[static_cast<std::size_t>(order_[0])];
  }
  const double target = uniform_of(options.seed, static_cast<std::uint64_t>(index)) * total;
  double sum = 0;
  for (std::size_t i = 0; i < kept; ++i) {
    sum += weights_[static_cast<std::size_t>(order_[i])];
    if (target < sum) return order_[i];
  }
  return order_[kept - 1];
}

}  // namespace atl
