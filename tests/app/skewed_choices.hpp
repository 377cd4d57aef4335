#pragma once
// Made choices of experts for the tests of placements.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "app/plan/expert_choices.hpp"

namespace atl {

/// Experts as often as 1 / (1 + number), and often with a partner; the same for the same seed.
inline ExpertChoices skewed_choices(int experts, int top_k, int tokens, unsigned seed) {
  std::mt19937 random(seed);  // its numbers are the same everywhere, unlike distributions'
  const auto below = [&](std::uint32_t end) { return random() % end; };
  std::vector<std::uint16_t> names(static_cast<std::size_t>(experts));
  for (std::size_t e = 0; e < names.size(); ++e) names[e] = static_cast<std::uint16_t>(e);
  for (std::size_t e = names.size(); e > 1; --e)
    std::swap(names[e - 1], names[below(static_cast<std::uint32_t>(e))]);
  ExpertChoices choices{experts, top_k, {}};
  for (int t = 0; t < tokens; ++t) {
    std::vector<std::uint16_t> token;
    while (token.size() < static_cast<std::size_t>(top_k)) {
      const std::uint32_t rarely = below(static_cast<std::uint32_t>(experts)) + 1;
      std::uint32_t which = below(rarely);
      if (!token.empty() && below(2) == 0) {
        const auto last = std::find(names.begin(), names.end(), token.back()) - names.begin();
        which = static_cast<std::uint32_t>(last) ^ 1U;
      }
      if (which >= names.size()) continue;
      if (std::find(token.begin(), token.end(), names[which]) != token.end()) continue;
      token.push_back(names[which]);
    }
    choices.experts.insert(choices.experts.end(), token.begin(), token.end());
  }
  return choices;
}

}  // namespace atl
