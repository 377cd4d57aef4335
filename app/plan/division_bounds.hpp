#pragma once
// How good a division of items among nodes can be at best: bounds that no division goes below.

#include <cstdint>
#include <vector>

#include "app/plan/node_costs.hpp"

namespace atl {

/// Which bound is the highest, and so what stands in the way of a better division.
enum class Limit : std::uint8_t {
  none,            ///< nothing costs anything
  average,         ///< the mean over nodes of what all tokens must cost
  hottest_expert,  ///< what the node that has one certain item must cost
  exact,           ///< all divisions were looked at
};

struct Bound {
  double busiest = 0;  ///< times its share, as busiest_of()
  Limit limit = Limit::none;
};

/// The highest bound that is known for `problem`. `inner_pairs` as most_inner_pairs(); `known`: the
/// busiest node of some division, which the bound never exceeds.
Bound bound_of(const NodeProblem& problem, double inner_pairs, double known);

/// Over all tokens, at most so many pairs of one token's items are on one node. See the source for
/// the proof.
double most_inner_pairs(const NodeProblem& problem);

/// At least so much all nodes together cost, over all tokens, where so many pairs are inside nodes.
double least_cost_in_all(const NodeProblem& problem, double inner_pairs);

/// At least so much a node with exactly `capacity` items costs, before its share, where `item` is
/// one of them; or `known`, where that is less.
double least_cost_with(const NodeProblem& problem, std::size_t item, int capacity, double known);

}  // namespace atl
