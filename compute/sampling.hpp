#pragma once
// From logits to one token: greedy, temperature, top-p. A token depends on its row of logits and on
// its request alone, so that a request gets the same tokens wherever and next to whomever it runs.

#include <cstdint>
#include <span>

namespace atl {

struct SamplingOptions {
  double temperature = 0.0;  ///< 0 takes the most probable token (ties to the lower id)
  /// Keeps the fewest most probable tokens (ties to the lower id) whose probabilities sum to this.
  double top_p = 1.0;
  std::uint64_t seed = 0;
};

/// How the next token of one request is chosen.
struct SamplingRequest {
  SamplingOptions options;
  std::int64_t index = 0;    ///< tokens generated so far; with the seed it fixes the random number
  std::int32_t target = -1;  ///< a token that takes the place of the draw; -1: none
};

struct SampledToken {
  std::int32_t token = 0;  ///< -1 where a logit is not finite
  float logprob = 0;       ///< under the model's own distribution (temperature 1, all tokens)
};

namespace compute {

/// Largest vocabulary: sums of its weights, in 2^-40 of the largest, must fit 63 bits.
inline constexpr int max_vocab = 1 << 22;

/// A SamplingRequest as the arithmetic takes it.
struct Draw {
  double scale = 0;  ///< powers of two per unit of logit: log2(e) / temperature; 0: greedy
  double top_p = 1;
  std::uint64_t random = 0;  ///< uniform over 64 bits
  std::int32_t target = -1;  ///< taken in place of all this; -1: none
};
Draw draw_of(const SamplingRequest& request);

/// Uniform over 64 bits, from a counter: the same (seed, index), the same number.
std::uint64_t random_bits(std::uint64_t seed, std::uint64_t index);

/// The token for one row of logits [vocab], vocab >= 1. The draw runs over the kept tokens in order
/// of their ids. Does not allocate.
SampledToken sample_row(std::span<const float> logits, const Draw& draw);

}  // namespace compute
}  // namespace atl
