#pragma once
// From logits to one token: greedy, temperature, top-p. Depends on nothing but its arguments, so a
// request gets the same tokens wherever and next to whomever it runs.

#include <cstdint>
#include <span>
#include <vector>

namespace atl {

struct SamplingOptions {
  double temperature = 0.0;  ///< 0 takes the most probable token (ties to the lower id)
  double top_p = 1.0;        ///< keeps the most probable tokens whose probabilities sum to this
  std::uint64_t seed = 0;
};

struct SampledToken {
  std::int32_t token = 0;
  float logprob = 0;  ///< under the model's own distribution (temperature 1, all tokens)
};

class Sampler {
 public:
  explicit Sampler(int vocab);

  /// `logits` [vocab]; `index` counts the tokens generated so far for this request: together with
  /// the seed it fixes the random number. Does not allocate.
  SampledToken sample(std::span<const float> logits, const SamplingOptions& options,
                      std::int64_t index);

 private:
  std::int32_t draw(std::span<const float> logits, const SamplingOptions& options,
                    std::int64_t index);

  std::vector<double> weights_;      // [vocab] unnormalised probabilities
  std::vector<std::int32_t> order_;  // [vocab] ids by falling probability
};

/// Uniform in [0, 1) with 53 bits, from a counter: the same (seed, index), the same number.
double uniform_of(std::uint64_t seed, std::uint64_t index);

}  // namespace atl
