#pragma once
// Sampling as one would write it down: sort, cut, count. What the backends are compared with.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "compute/sampling.hpp"
#include "compute/sampling_arithmetic.hpp"

namespace atl::testing {

/// The logits that a draw is made from. In float64, and rounded once.
inline std::vector<float> plain_changed(std::vector<float> logits, const SamplingRequest& request) {
  const SamplingOptions& options = request.options;
  constexpr double largest = std::numeric_limits<float>::max();
  for (const LogitChange& change : request.changes) {
    float& logit = logits[static_cast<std::size_t>(change.token)];
    double x = double{logit} + double{change.bias};
    if (change.repeated && x > 0) {
      x /= options.repetition_penalty;
    } else if (change.repeated) {
      x *= options.repetition_penalty;
    }
    x -= options.frequency_penalty * change.generated;
    x -= change.generated > 0 ? options.presence_penalty : 0;
    logit = static_cast<float>(std::clamp(change.banned ? -largest : x, -largest, largest));
  }
  return logits;
}

/// Ids by falling logit.
inline std::vector<std::size_t> plain_order(const std::vector<float>& logits) {
  std::vector<std::size_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return logits[a] > logits[b]; });
  return order;
}

/// The token that is drawn from changed logits. The weights are the backends' own, so that tokens
/// agree exactly; that these are e^(logit / temperature) is a test of its own.
inline std::size_t plain_draw(const std::vector<float>& logits, const SamplingRequest& request) {
  const SamplingOptions& options = request.options;
  auto order = plain_order(logits);
  const float best = logits[order[0]];
  if (options.temperature == 0) return order[0];
  const compute::Draw draw = compute::draw_of(request);
  const auto weight = [&](std::size_t id) {
    return compute::weight_of(logits[id], best, draw.scale);
  };
  if (options.top_k > 0 && order.size() > static_cast<std::size_t>(options.top_k)) {
    order.resize(static_cast<std::size_t>(options.top_k));
  }
  std::erase_if(order, [&](std::size_t id) {
    const double share = std::ldexp(static_cast<double>(weight(id)), -compute::weight_bits);
    return share < options.min_p;
  });
  std::uint64_t total = 0;
  for (const std::size_t id : order) total += weight(id);
  if (options.top_p < 1) {
    const std::uint64_t wanted = compute::wanted_weight(total, options.top_p);
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
  return order[at];
}

/// Of finite logits: the token and, after it, request.tops most probable ones. Log-probabilities
/// are in float64.
inline std::vector<SampledToken> plain_outcomes(const std::vector<float>& logits,
                                                const SamplingRequest& request) {
  const auto order = plain_order(logits);
  const float best = logits[order[0]];
  double probabilities = 0;
  for (const float logit : logits) probabilities += std::exp(double{logit} - double{best});
  const auto sampled = [&](std::size_t id) {
    return SampledToken{
        static_cast<std::int32_t>(id),
        static_cast<float>(double{logits[id]} - double{best} - std::log(probabilities))};
  };
  std::vector<SampledToken> outcomes = {
      sampled(plain_draw(plain_changed(logits, request), request))};
  for (std::size_t i = 0; i < static_cast<std::size_t>(request.tops); ++i) {
    outcomes.push_back(i < order.size() ? sampled(order[i]) : SampledToken{-1, 0});
  }
  return outcomes;
}
inline SampledToken plain_sample(const std::vector<float>& logits, const SamplingRequest& request) {
  return plain_outcomes(logits, request)[0];
}

/// Requests from the ordinary to the extreme.
inline std::vector<SamplingRequest> many_requests() {
  std::vector<SamplingRequest> requests;
  std::uint64_t seed = 0;
  const auto add = [&](SamplingOptions options, std::int64_t index, int tops) {
    ++seed;
    options.seed = seed << (seed % 50U);
    requests.push_back({options, index, -1, {}, tops});
  };
  for (const double temperature : {0.0, 0.7, 1.0, 1.3, 1e-12, 1e-320, 1e300}) {
    for (const double top_p : {1.0, 0.9, 0.5, 0.01, 1e-300, 1 - 1e-16}) {
      for (const std::int64_t index : {0, 17}) add({temperature, top_p}, index, 0);
    }
  }
  for (const double temperature : {0.7, 1.0, 1e300}) {
    for (const int top_k : {0, 1, 2, 5, 40, 1 << 30}) {
      for (const double min_p : {0.0, 1e-12, 0.05, 1.0}) {
        for (const double top_p : {1.0, 0.8}) {
          add({temperature, top_p, 0, top_k, min_p}, 3, top_k % (most_tops + 1));
        }
      }
    }
  }
  return requests;
}

/// The same requests with changes of many kinds, which lie in `room`.
inline std::vector<SamplingRequest> changed_requests(int vocab,
                                                     std::vector<std::vector<LogitChange>>& room) {
  std::vector<SamplingRequest> requests = many_requests();
  room.assign(requests.size(), {});
  std::mt19937 generator(17);
  std::vector<std::int32_t> ids(static_cast<std::size_t>(vocab));
  std::iota(ids.begin(), ids.end(), 0);
  for (std::size_t i = 0; i < requests.size(); ++i) {
    std::shuffle(ids.begin(), ids.end(), generator);
    const std::size_t count = std::min<std::size_t>(ids.size(), i % 7 == 6 ? 5000 : 3 * (i % 7));
    for (std::size_t k = 0; k < count; ++k) {
      const auto generated = static_cast<std::int32_t>(generator() % 3);
      room[i].push_back({ids[k], generated,
                         k % 4 == 0 ? std::array{3.5F, -100.0F, 3e38F}[k % 3] : 0,
                         generated > 0 || k % 3 == 0, k % 5 == 4});
    }
    requests[i].changes = room[i];
    SamplingOptions& options = requests[i].options;
    options.repetition_penalty = std::array{1.0, 1.3, 0.5, 1e-300}[i % 4];
    options.presence_penalty = std::array{0.0, 1.5, -2.0}[i % 3];
    options.frequency_penalty = std::array{0.0, 0.5, -2.0, 1e300, 0.1}[i % 5];
  }
  return requests;
}

}  // namespace atl::testing
