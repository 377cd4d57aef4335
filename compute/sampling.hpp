#pragma once
// From logits to one token: greedy, temperature, top-k, min-p, top-p, penalties. A token depends on
// its row of logits and on its request alone, so that a request gets the same tokens wherever and
// next to whomever it runs.

#include <cstddef>
#include <cstdint>
#include <span>

namespace atl {

struct SamplingOptions {
  double temperature = 0.0;  ///< 0 takes the most probable token (ties to the lower id)
  /// Keeps the fewest most probable tokens (ties to the lower id) whose probabilities sum to this.
  /// Among those that top_k and min_p leave.
  double top_p = 1.0;
  std::uint64_t seed = 0;
  int top_k = 0;  ///< keeps so many most probable tokens (ties to the lower id); 0: all
  double min_p =
      0.0;  ///< leaves out tokens below this share of the most probable one's probability
  /// Logits of tokens of the prompt or the output are divided by it where above 0, else multiplied.
  double repetition_penalty = 1.0;
  double presence_penalty = 0.0;   ///< taken from the logits of tokens of the output
  double frequency_penalty = 0.0;  ///< the same, for each time that they are in it

  bool penalises() const {
    return repetition_penalty != 1 || presence_penalty != 0 || frequency_penalty != 0;
  }
};

/// What is different about one token's logit in one draw: first the bias is added, then come the
/// penalties.
struct LogitChange {
  std::int32_t token = 0;
  std::int32_t generated = 0;  ///< how often it is in the output
  float bias = 0;
  bool repeated = false;  ///< it is in the prompt or in the output
  bool banned = false;    ///< it is not drawn while there is another
  float model_logit = 0;  ///< for who draws: the logit as the model gave it
};
static_assert(sizeof(LogitChange) == 20);

/// Most probable tokens that may be asked for beside the one that is drawn.
inline constexpr int most_tops = 20;

/// How the next token of one request is chosen.
struct SamplingRequest {
  SamplingOptions options;
  std::int64_t index = 0;    ///< tokens generated so far; with the seed it fixes the random number
  std::int32_t target = -1;  ///< a token that takes the place of the draw; -1: none
  std::span<LogitChange> changes{};  ///< each of another token; who draws writes model_logit
  int tops = 0;                      ///< most probable tokens wanted with it, up to most_tops

  std::size_t outcomes() const { return 1 + static_cast<std::size_t>(tops); }
};

struct SampledToken {
  std::int32_t token = 0;  ///< -1 where a logit is not finite
  float logprob = 0;       ///< under the model's own distribution (temperature 1, all tokens)
};

/// A known token's.
struct ScoredToken {
  float logprob = 0;        ///< NaN where a logit is not finite
  std::int32_t greedy = 0;  ///< 1 where it is the most probable token (ties to the lower id)
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
  std::int32_t top_k = 0;
  std::uint64_t least_weight = 0;  ///< tokens that weigh less are left out
  double repetition_penalty = 1;
  double presence_penalty = 0;
  double frequency_penalty = 0;
  std::int32_t num_changes = 0;
  std::int32_t tops = 0;
  // Where several rows are drawn together, of arrays for all of them:
  std::int64_t first_change = 0;
  std::int64_t first_outcome = 0;
};
Draw draw_of(const SamplingRequest& request);

/// Uniform over 64 bits, from a counter: the same (seed, index), the same number.
std::uint64_t random_bits(std::uint64_t seed, std::uint64_t index);

/// The token for one row of logits [vocab], vocab >= 1. The draw runs over the kept tokens in order
/// of their ids. Does not allocate.
SampledToken sample_row(std::span<const float> logits, const Draw& draw);

/// The same with changes, which stay in `logits`, and with the draw.tops most probable tokens in
/// falling order after it. Log-probabilities are of the logits as they were; where one of these is
/// not finite all tokens are -1, and where the vocabulary has no more tokens those left over.
void sample_row(std::span<float> logits, const Draw& draw, std::span<LogitChange> changes,
                SampledToken* out);

}  // namespace compute
}  // namespace atl
