#pragma once
// What is kept of requests that an earlier run had begun.

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "compute/sampling.hpp"

namespace atl {

/// How far a request had come when this run began.
enum class Kept : char { nothing, a_part, all };

struct KeptProgress {
  bool finished = false;       ///< nothing is left to do
  std::int32_t cached = 0;     ///< tokens whose keys and values are kept
  std::int32_t generated = 0;  ///< tokens

  /// In one word, for the other ranks.
  Kept kept() const { return finished ? Kept::all : cached > 0 ? Kept::a_part : Kept::nothing; }
};

/// The rest of what is kept of a request that was under way.
struct SavedSequence {
  std::vector<std::int32_t> generated;
  std::vector<float> logprobs;
  std::vector<SampledToken> tops;  ///< beside them
  bool greedy = true;              ///< see Sequence
};
/// Fetches what is kept of a request; its keys and values go into these pages of this rank.
using Restore =
    std::function<SavedSequence(std::int32_t request, std::span<const std::int32_t> pages)>;

}  // namespace atl
