#pragma once
// The best division of few items among nodes, and its proof: all are looked at.

#include <optional>
#include <vector>

#include "app/plan/node_costs.hpp"

namespace atl {

inline constexpr std::size_t most_items_exactly = 16;

/// [items] -> node, with the least possible busiest node; nothing where there are more than
/// most_items_exactly items. By dynamic programming over subsets: best(n, S), the least busiest of
/// the first n nodes that have the items S between them, is the least over A in S of
/// max(best(n - 1, S without A), cost of A on node n).
std::optional<std::vector<int>> divide_exactly(const NodeProblem& problem);

}  // namespace atl
