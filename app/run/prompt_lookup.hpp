#pragma once
// Tokens that a sequence may go on with: those that followed its last ones where these stood
// before, in the prompt or in what was generated. They are guesses, which the model checks.

#include <cstdint>
#include <span>
#include <vector>

namespace atl {

/// On one owner; tokens that were generated are `alone` and `accepted` ones.
struct SpeculationCounts {
  std::int64_t alone = 0;     ///< drawn after a token that was known: one of each sequence and pass
  std::int64_t proposed = 0;  ///< guessed tokens that went through the layers
  std::int64_t accepted = 0;  ///< of these, that were drawn as well
};

class PromptLookup {
 public:
  /// For sequences of up to `longest` tokens. Proposes at most `most` at once; 0: never any.
  PromptLookup(int most, std::int64_t longest);

  /// A sequence begins.
  void begin();
  /// Appends to `proposed`, which is empty, tokens that may follow these, `room` at most. The
  /// tokens are those of the last call, and others behind them.
  void propose(std::span<const std::int32_t> tokens, int room, std::vector<std::int32_t>& proposed);
  /// How many of those proposed last the model took too.
  void judge(int proposed, int accepted);

 private:
  std::uint32_t slot_of(std::span<const std::int32_t> tokens, std::int32_t end) const;
  void learn(std::span<const std::int32_t> tokens);

  int most_;
  std::vector<std::int32_t> after_;  // by the last tokens' hash: where the next one stands
  std::int32_t learnt_ = 0;          // tokens whose predecessors are in it
  int at_once_ = 0;
  int misses_ = 0;  // in a row
  int pause_ = 0;   // calls in which nothing is proposed
};

}  // namespace atl
