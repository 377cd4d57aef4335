#include "compute/sampling.hpp"

#include <algorithm>
#include <array>
#include <cmath>

#include "compute/error.hpp"
#include "compute/sampling_arithmetic.hpp"

namespace atl::compute {

namespace {

using Logits = std::span<const float>;

template <class Weigh>
std::uint64_t sum_of(Logits logits, const Weigh& weigh) {
  std::uint64_t sum = 0;
  for (const float logit : logits) sum += weigh(logit);
  return sum;
}

/// Finds the lowest key that is kept where `wanted` is to be reached, eight bits at a time: what
/// tokens count for is summed by those bits of their key, where the bits before are the ones found.
template <class Weigh>
Kept keep(Logits logits, const Weigh& weigh, std::uint64_t wanted) {
  constexpr unsigned digit_bits = 8;
  std::uint64_t above = 0;
  std::uint64_t found = 0;  // the key's bits so far
  for (unsigned shift = 32; shift > 0;) {
    shift -= digit_bits;
    std::array<std::uint64_t, 1U << digit_bits> weights{};
    for (const float logit : logits) {
      const std::uint64_t key = key_of(logit);
      if (key >> (shift + digit_bits) != found) continue;
      weights[(key >> shift) % weights.size()] += weigh(logit);
    }
    std::size_t digit = weights.size() - 1;
    while (digit > 0 && above + weights[digit] < wanted) above += weights[digit--];
    found = (found << digit_bits) | digit;
  }
  const auto key = static_cast<std::uint32_t>(found);
  return kept_of(key, above, weigh(logit_of(key)), wanted);
}

/// The top_k tokens, with what they weigh.
Kept keep_count(Logits logits, const Weights& weigh, int top_k) {
  const auto one = [](float) { return std::uint64_t{1}; };
  Kept kept = keep(logits, one, static_cast<std::uint64_t>(top_k));
  kept.weight = kept.equals * weigh(logit_of(kept.key));
  for (const float logit : logits) {
    if (key_of(logit) > kept.key) kept.weight += weigh(logit);
  }
  return kept;
}

/// The token that holds the drawn unit of the kept weight, tokens in order of their ids.
std::int32_t draw_from(Logits logits, const Weights& weigh, const Kept& kept,
                       std::uint64_t random) {
  const std::uint64_t unit = drawn_unit(kept.weight, random);
  std::uint64_t equals = kept.equals;
  std::uint64_t sum = 0;
  for (std::size_t id = 0; id < logits.size(); ++id) {
    const std::uint32_t key = key_of(logits[id]);
    if (key < kept.key || (key == kept.key && equals == 0)) continue;
    if (key == kept.key) --equals;
    sum += weigh(logits[id]);
    if (sum > unit) return static_cast<std::int32_t>(id);
  }
  fail("internal: drew unit {} of tokens that weigh {}", unit, sum);
}

/// `model`: the sum of weights at temperature 1, where `best` is the largest of the model's logits
/// and these are they; 0 where they are others.
std::int32_t choose(Logits logits, const Draw& draw, std::uint64_t model) {
  if (draw.target >= 0) return draw.target;
  // max_element returns the first of equals: ties go to the lower id.
  const auto top = std::max_element(logits.begin(), logits.end());
  if (draw.scale <= 0) return static_cast<std::int32_t>(top - logits.begin());
  const Weights weigh{*top, draw.scale, draw.least_weight};
  Kept kept;
  if (draw.top_k > 0 && static_cast<std::size_t>(draw.top_k) < logits.size()) {
    kept = keep_count(logits, weigh, draw.top_k);
  } else {
    const bool summed = model > 0 && draw.scale == scale_of_one && draw.least_weight == 0;
    kept.weight = summed ? model : sum_of(logits, weigh);
  }
  // The fewest tokens that reach a part of what is kept are among the kept ones.
  if (draw.top_p < 1) kept = keep(logits, weigh, wanted_weight(kept.weight, draw.top_p));
  return draw_from(logits, weigh, kept, draw.random);
}

/// Log-probabilities of a model's logits, of which `best` is the largest.
class LogProbs {
 public:
  LogProbs(float best, std::uint64_t model)
      : best_(best), log_sum_(std::log(std::ldexp(static_cast<double>(model), -weight_bits))) {}

  float of(float logit) const {
    return static_cast<float>(static_cast<double>(logit) - best_ - log_sum_);
  }

 private:
  double best_;
  double log_sum_;
};

void find_tops(Logits logits, const LogProbs& log_probs, std::span<SampledToken> out) {
  std::array<std::uint64_t, most_tops> ranks{};  // falling
  const auto end = ranks.begin() + static_cast<std::ptrdiff_t>(out.size());
  for (std::size_t id = 0; id < logits.size(); ++id) {
    const std::uint64_t rank = rank_of(logits[id], static_cast<std::int32_t>(id));
    if (rank < *(end - 1)) continue;
    const auto place = std::upper_bound(ranks.begin(), end, rank, std::greater<>());
    std::move_backward(place, end - 1, end);
    *place = rank;
  }
  for (std::size_t i = 0; i < out.size(); ++i) {
    out[i] = {-1, 0};
    if (ranks[i] > 0) out[i] = {token_of_rank(ranks[i]), log_probs.of(logit_of_rank(ranks[i]))};
  }
}

bool all_finite(Logits logits) {
  return std::all_of(logits.begin(), logits.end(), is_finite);
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
  draw.top_k = options.top_k;
  draw.least_weight = static_cast<std::uint64_t>(std::ceil(std::ldexp(options.min_p, weight_bits)));
  draw.repetition_penalty = options.repetition_penalty;
  draw.presence_penalty = options.presence_penalty;
  draw.frequency_penalty = options.frequency_penalty;
  draw.num_changes = static_cast<std::int32_t>(request.changes.size());
  draw.tops = request.tops;
  return draw;
}

SampledToken sample_row(std::span<const float> logits, const Draw& draw) {
  if (!all_finite(logits)) return {-1, 0};
  const float best = *std::max_element(logits.begin(), logits.end());
  const std::uint64_t model = sum_of(logits, Weights{best, scale_of_one, 0});
  const std::int32_t token = choose(logits, draw, model);
  return {token, LogProbs(best, model).of(logits[static_cast<std::size_t>(token)])};
}

void sample_row(std::span<float> logits, const Draw& draw, std::span<LogitChange> changes,
                SampledToken* out) {
  const auto tops = static_cast<std::size_t>(draw.tops);
  if (!all_finite(logits))
    return static_cast<void>(std::fill_n(out, 1 + tops, SampledToken{-1, 0}));
  const float best = *std::max_element(logits.begin(), logits.end());
  const std::uint64_t model = sum_of(logits, Weights{best, scale_of_one, 0});
  const LogProbs log_probs(best, model);
  if (tops > 0) find_tops(logits, log_probs, {out + 1, tops});
  for (LogitChange& change : changes) {
    float& logit = logits[static_cast<std::size_t>(change.token)];
    change.model_logit = logit;
    logit = changed_logit(logit, change, draw);
  }
  const std::int32_t token = choose(logits, draw, changes.empty() ? model : 0);
  const auto changed = std::ranges::find(changes, token, &LogitChange::token);
  const float logit =
      changed == changes.end() ? logits[static_cast<std::size_t>(token)] : changed->model_logit;
  out[0] = {token, log_probs.of(logit)};
}

}  // namespace atl::compute
