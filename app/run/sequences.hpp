#pragma once
// What is under way on this rank.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "app/plan/rank_load.hpp"
#include "app/run/finished_request.hpp"
#include "app/run/logit_changes.hpp"
#include "app/run/prompt_lookup.hpp"
#include "app/run/stop_texts.hpp"

namespace atl {

struct Sequence {
  std::int32_t request = -1;         ///< index into the requests; -1: ended, or its slot is free
  io::Request asked;                 ///< what was asked for, without the prompt
  std::vector<std::int32_t> tokens;  ///< prompt, then generated
  std::vector<std::int32_t> pages;   ///< of the KV cache, for its whole life
  std::int32_t prompt_length = 0;
  std::int32_t cached = 0;  ///< tokens whose keys and values are in the cache
  // Of the beginning that it has in common with others, see PrefixPages:
  std::int32_t shared_pages = 0;  ///< of `pages`, the first: another computes them
  std::int32_t donor = -1;        ///< page of another whose first rows it will copy; -1: none
  std::int32_t awaited = 0;  ///< tokens that it takes once they are computed; till then it waits
  std::int32_t landed = 0;   ///< tokens of its prompt that others may take
  std::int32_t max_new = 0;  ///< tokens that it may generate
  std::vector<std::int32_t> forced;  ///< those it generates; empty: what is drawn
  std::size_t first_weights = 0;     ///< that computed some of it, see Batcher::begin_weights()
  std::vector<float> logprobs;
  std::vector<SampledToken> tops;  ///< [generated, asked.top_logprobs]
  // Where it scores its prompt, the same of that, but for its first token:
  std::vector<float> prompt_logprobs;
  std::vector<SampledToken> prompt_tops;
  bool greedy = true;  ///< in scoring: all scored tokens were the most probable ones
  LogitChanges changes;
  StopTexts stops;
  PromptLookup lookup{0, 0};
  std::vector<std::int32_t>
      proposed;             ///< tokens that go through the layers behind its own, unasked
  std::int32_t agreed = 0;  ///< of these, the first, which were drawn as well
  RequestTimes times;

  std::int32_t length() const { return static_cast<std::int32_t>(tokens.size()); }
  std::int32_t num_generated() const { return length() - prompt_length; }
  std::span<const std::int32_t> generated() const {
    return std::span(tokens).subspan(static_cast<std::size_t>(prompt_length));
  }
  bool prefilling() const { return cached < prompt_length; }
  /// Tokens that can go through the layers now: what is left of the prompt, or what was generated
  /// last.
  std::int32_t uncached() const { return awaited > 0 ? 0 : length() - cached; }
  /// The same with those that are proposed.
  std::int32_t rows() const { return uncached() + static_cast<std::int32_t>(proposed.size()); }
  /// Of a position, which may be that of a proposed one.
  std::int32_t token_at(std::int32_t position) const {
    return position < length() ? tokens[static_cast<std::size_t>(position)]
                               : proposed[static_cast<std::size_t>(position - length())];
  }
};

/// Room for sequences, so that nothing is allocated while they grow.
struct SequenceRoom {
  int max = 0;                  ///< at once
  std::int64_t longest = 1;     ///< tokens of one
  std::int64_t most_pages = 1;  ///< of one
  int speculate = 0;            ///< tokens proposed for one at once
};

/// The sequences of this rank, each in a slot.
class Sequences {
 public:
  explicit Sequences(const SequenceRoom& room);

  /// Throws Error when all slots are taken.
  Sequence& start(std::int32_t request, std::span<const std::int32_t> prompt, int max_new);

  Sequence& in_slot(std::int32_t slot) { return slots_[static_cast<std::size_t>(slot)]; }
  const Sequence& in_slot(std::int32_t slot) const {
    return slots_[static_cast<std::size_t>(slot)];
  }
  /// Taken slots, in order of admission.
  std::span<const std::int32_t> taken() const { return taken_; }
  /// Frees the slots of sequences that have ended.
  void drop_ended();

  /// The load of this rank, but for what lies outside the sequences.
  RankLoad load() const;

 private:
  std::vector<Sequence> slots_;
  std::vector<std::int32_t> taken_;
};

}  // namespace atl
