#pragma once
// Local search for the division of items among nodes: pairs of items change places.

#include <cstdint>
#include <vector>

#include "app/plan/node_costs.hpp"

namespace atl {

/// What limits a search, beside the nodes' capacities.
struct SwapLimits {
  std::vector<int> kind;       ///< [items]: replicas of one expert are of one kind
  std::vector<int> most_here;  ///< [nodes]: of one kind
  std::int64_t work = 0;       ///< numbers to look at, about
  std::uint64_t seed = 0;
  double threshold = 0.2;  ///< the first, of a mean node's 16th power
};

/// Begins with `node_of` [items], which must keep the limits, and returns the division with the
/// least busiest node that it came by; nodes keep their number of items. Threshold accepting
/// (Dueck and Scheuer, 1990) on the sum of the nodes' 16th powers, with a threshold that falls to
/// 0 some times. What a swap changes is known from tables but for the tokens that have both items,
/// so that looking at one takes as long as there are such tokens. Sums and products alone: the
/// result is the same on every machine.
std::vector<int> search_swaps(const NodeProblem& problem, const std::vector<int>& node_of,
                              const SwapLimits& limits);

}  // namespace atl
