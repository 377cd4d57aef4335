#pragma once
// The placement of one layer's experts, from what tokens chose, and how good one can be at best.

#include "app/plan/division_bounds.hpp"
#include "app/plan/node_costs.hpp"
#include "app/plan/seats.hpp"

namespace atl {

/// The least busy link that a search finds, then the least busy rank; never a busier link than
/// experts in contiguous order make. Of up to 16 experts without replicas the link is the least
/// there is. With replicas the search takes each to have an equal part of its expert's tokens;
/// loads_of() knows better. The same for the same arguments on every machine. Throws as
/// contiguous_order().
RanksOfExpert place_layer(const ExpertChoices& choices, const PlacementRules& rules);

/// What no placement by these rules goes below.
struct LayerBounds {
  Bound link, node;
  double rank = 0;
};
/// `known`: loads of some placement, which the bounds never exceed.
LayerBounds bounds_of(const ExpertChoices& choices, const PlacementRules& rules,
                      const LayerLoads& known);

/// Whether experts have several replicas by these rules.
bool has_replicas(int num_experts, const PlacementRules& rules);

/// Experts, one item each, to be divided among the nodes; `own_rows_count`: also rows of a node's
/// own tokens, which cross no link.
NodeProblem node_problem(const ExpertChoices& choices, NodeCost cost, const PlacementRules& rules,
                         bool own_rows_count);

}  // namespace atl
