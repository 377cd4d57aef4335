#pragma once
// What tokens chose in one layer: the traffic that a placement is made for.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace atl {

/// Experts of each token in one layer, different ones, in falling router weight.
struct ExpertChoices {
  int num_experts = 0;
  int top_k = 0;
  std::vector<std::uint16_t> experts;  ///< [tokens, top_k]

  std::size_t num_tokens() const {
    return top_k == 0 ? 0 : experts.size() / static_cast<std::size_t>(top_k);
  }
  std::span<const std::uint16_t> of(std::size_t token) const {
    const auto width = static_cast<std::size_t>(top_k);
    return std::span(experts).subspan(token * width, width);
  }
  /// [experts]: tokens that chose each.
  std::vector<std::int64_t> loads() const {
    std::vector<std::int64_t> loads(static_cast<std::size_t>(num_experts));
    for (const std::uint16_t expert : experts) ++loads[expert];
    return loads;
  }
};

}  // namespace atl
