#include "compute/sampling.hpp"

#include <algorithm>
#include <array>
#include <cmath>

#include "compute/error.hpp"
#include "compute/sampling_arithmetic.hpp"

namespace atl::compute {

namespace {

struct Totals {
  std::uint64_t drawn = 0;  // at the request's temperature
  std::uint64_t model = 0;  // at temperature 1
};

Totals totals_of(std::span<const float> logits, float best, double scale) {
  Totals totals;
  for (const float logit : logits) totals.model += weight_of(logit, best, scale_of_one);
  if (scale == scale_of_one) {
    totals.drawn = totals.model;
  } else if (scale > 0) {
    for (const float logit : logits) totals.drawn += weight_of(logit, best, scale);
  }
  return totals;
}

/// Finds the lowest key that top-p keeps, eight bits at a time: weights are summed by those bits of
/// their key, where the bits before are the ones found.
Kept keep(std::span<const float> logits, float best, double scale, std::uint64_t wanted) {
  constexpr unsigned digit_bits = 8;
  std::uint64_t above = 0;
  std::uint64_t found = 0;  // the key's bits so far
  for (unsigned shift = 32; shift > 0;) {
    shift -= digit_bits;
    std::array<std::uint64_t, 1U << digit_bits> weights{};
    for (const float logit : logits) {
      const std::uint64_t key = key_of(logit);
      if (key >> (shift + digit_bits) != found) continue;
      weights[(key >> shift) % weights.size()] += weight_of(logit, best, scale);
    }
    std::size_t digit = weights.size() - 1;
    while (digit > 0 && above + weights[digit] < wanted) above += weights[digit--];
    found = (found << digit_bits) | digit;
  }
  const auto key = static_cast<std::uint32_t>(found);
  return kept_of(key, above, weight_of(logit_of(key), best, scale), wanted);
}

/// The token that holds the drawn unit of the kept weight, tokens in order of their ids.
std::int32_t draw_from(std::span<const float> logits, float best, const Draw& draw,
                       const Kept& kept) {
  const std::uint64_t unit = drawn_unit(kept.weight, draw.random);
  std::uint64_t equals = kept.equals;
  std::uint64_t sum = 0;
  for (std::size_t id = 0; id < logits.size(); ++id) {
    const std::uint32_t key = key_of(logits[id]);
    if (key < kept.key || (key == kept.key && equals == 0)) continue;
    if (key == kept.key) --equals;
    sum += weight_of(logits[id], best, draw.scale);
    if (sum > unit) return static_cast<std::int32_t>(id);
  }
  fail("internal: drew unit {} of tokens that weigh {}", unit, sum);
}

}  // namespace

std::uint64_t random_bits(std::uint64_t seed, std::uint64_t index) {
  // Two rounds of the splitmix64 finaliser over both words; it passes through every 64-bit value.
  const auto mix = [](std::uint64_t x) {
    x = (x ^ (x >> 30U)) * 0xbf58476d1ce4e5b9ULL;
    x = (x ^ (x >> 27U)) * 0x94d049bb133111ebULL;
    return x ^ (x >> 31U);
  };
  return mix(mix(seed + 0x9e3779b97f4a7c15ULL) + (index + 1) * 0x9e3779b97f4a7c15ULL);
}

Draw draw_of(const SamplingRequest& request) {
  const SamplingOptions& options = request.options;
  // Where the quotient would overflow: 0 times infinity is no weight for the best token.
  constexpr double largest_scale = 1e300;
  Draw draw;
  if (options.temperature > 0) {
    draw.scale = std::min(scale_of_one / options.temperature, largest_scale);
  }
  draw.top_p = options.top_p;
  draw.random = random_bits(options.seed, static_cast<std::uint64_t>(request.index));
  draw.target = request.target;
  return draw;
}

SampledToken sample_row(std::span<const float> logits, const Draw& draw) {
  if (!std::all_of(logits.begin(), logits.end(), is_finite)) return {-1, 0};
  // max_element returns the first of equals: ties go to the lower id.
  const auto top = std::max_element(logits.begin(), logits.end());
  const float best = *top;
  const Totals totals = totals_of(logits, best, draw.scale);
  auto token = static_cast<std::int32_t>(top - logits.begin());
  if (draw.target >= 0) {
    token = draw.target;
  } else if (draw.scale > 0) {
    const Kept kept = draw.top_p < 1
                          ? keep(logits, best, draw.scale, wanted_weight(totals.drawn, draw.top_p))
                          : Kept{0, 0, totals.drawn};
    token = draw_from(logits, best, draw, kept);
  }
  const double chosen = logits[static_cast<std::size_t>(token)];
  const double sum = std::ldexp(static_cast<double>(totals.model), -weight_bits);
  return {token, static_cast<float>(chosen - best - std::log(sum))};
}

}  // namespace atl::compute
