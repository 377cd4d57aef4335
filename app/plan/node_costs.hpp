#pragma once
// What a token costs the nodes that its experts are on, and what a placement costs by that: the
// objective that placements are made for.
//
// Homes. Which rank will have a token is not known when a placement is made, and requests are given
// out by load: a token is taken to be each rank's alike. So of the rows for a node's experts the
// share (R - r) / R crosses its link, with r of R ranks on it.

#include <vector>

#include "app/plan/expert_choices.hpp"
#include "app/plan/layout.hpp"
#include "app/plan/schedule.hpp"

namespace atl {

/// [experts] -> ranks that hold each.
using RanksOfExpert = std::vector<std::vector<int>>;

/// [top_k + 1]: what one token costs a node that has so many of its experts; 0 for none.
using NodeCost = std::vector<int>;

/// Rows between a token's rank and a node, there and back. By two hops: one there, and back one
/// where the node has all of the token's experts, else one for each of them; flat: one for each
/// expert, both ways.
NodeCost rows_there_and_back(Route route, int top_k);
/// Rows that come to the node.
NodeCost rows_there(Route route, int top_k);

/// The busiest of each, in rows that all tokens together make in one layer.
struct LayerLoads {
  double link = 0;  ///< over a node's link for its own experts, there and back; 0 on one node
  double node = 0;  ///< that come to a node for its experts, those of its own ranks' tokens too
  double rank = 0;  ///< that a rank computes
};

/// As the program routes: expected values over a token's possible homes.
LayerLoads loads_of(const ExpertChoices& choices, const RanksOfExpert& ranks_of_expert,
                    const Layout& layout, Route route);

/// Items (experts, or replicas of them) to be divided among nodes, so that the busiest costs least.
struct NodeProblem {
  ExpertChoices choices;      ///< of items
  std::vector<int> capacity;  ///< [nodes]: items that each takes; together at least all
  std::vector<double> share;  ///< [nodes]: of its rows, that count; see above
  NodeCost cost;

  std::size_t num_nodes() const { return capacity.size(); }
  std::size_t num_items() const { return static_cast<std::size_t>(choices.num_experts); }
};

/// Of each node, before `share`: sum of the cost of all tokens. `node_of` [items].
std::vector<std::int64_t> costs_of(const NodeProblem& problem, const std::vector<int>& node_of);
/// The largest of them, each times its share.
double busiest_of(const NodeProblem& problem, const std::vector<int>& node_of);

}  // namespace atl
