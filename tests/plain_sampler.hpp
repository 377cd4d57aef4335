#pragma once
// Sampling as one would write it down: sort, cut, count. What the backends are compared with.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "compute/sampling.hpp"
#include "compute/sampling_arithmetic.hpp"

namespace atl::testing {

/// Of finite logits. The weights are the backends' own, so that tokens agree exactly; that these
/// are e^(logit / temperature) is a test of its own. The log-probability is in float64.
inline SampledToken plain_sample(const std::vector<float>& logits, const SamplingRequest& request) {
  const compute::Draw draw = compute::draw_of(request);
  std::vector<std::size_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return logits[a] > logits[b]; });
  const float best = logits[order[0]];
  double probabilities = 0;
  for (const float logit : logits) probabilities += std::exp(double{logit} - double{best});
  const auto sampled = [&](std::size_t id) {
    return SampledToken{
        static_cast<std::int32_t>(id),
        static_cast<float>(double{logits[id]} - double{best} - std::log(probabilities))};
  };
  if (request.options.temperature == 0) return sampled(order[0]);

  const auto weight = [&](std::size_t id) {
    return compute::weight_of(logits[id], best, draw.scale);
  };
  std::uint64_t total = 0;
  for (const std::size_t id : order) total += weight(id);
  if (request.options.top_p < 1) {
    const std::uint64_t wanted = compute::wanted_weight(total, request.options.top_p);
    std::size_t kept = 0;
    total = 0;
    while (total < wanted) total += weight(order[kept++]);
    order.resize(kept);
  }
  std::sort(order.begin(), order.end());
  const std::uint64_t unit = compute::drawn_unit(total, draw.random);
  std::uint64_t sum = 0;
  std::size_t at = 0;
  while ((sum += weight(order[at])) <= unit) ++at;
  return sampled(order[at]);
}

/// Requests from the ordinary to the extreme.
inline std::vector<SamplingRequest> many_requests() {
  std::vector<SamplingRequest> requests;
  std::uint64_t seed = 0;
  for (const double temperature : {0.0, 0.7, 1.0, 1.3, 1e-12, 1e-320, 1e300}) {
    for (const double top_p : {1.0, 0.9, 0.5, 0.01, 1e-300, 1 - 1e-16}) {
      for (const std::int64_t index : {0, 17}) {
        requests.push_back({{temperature, top_p, ++seed << (seed % 50U)}, index});
      }
    }
  }
  return requests;
}

}  // namespace atl::testing
