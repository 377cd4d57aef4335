#pragma once
// Who has how many experts of a layer, and their replicas by load: what is decided without knowing
// which experts go together.

#include <cstdint>
#include <vector>

#include "app/plan/node_costs.hpp"

namespace atl {

/// What a placement must keep.
struct PlacementRules {
  Layout layout;
  int slots = 0;  ///< as even_placement(): of every rank, all taken; 0: as many as one place needs
  Route route = Route::nodes;
  std::int64_t work = 128000000;  ///< numbers that a search looks at, about
  std::uint64_t seed = 0;
};

/// As even_placement() places them. Throws Error where an expert would have no place, or be twice
/// on a rank.
RanksOfExpert contiguous_order(int num_experts, const PlacementRules& rules);

/// [ranks]: experts of a layer that each may have. Throws as contiguous_order().
std::vector<int> seats_of(int num_experts, const PlacementRules& rules);

/// [experts]: numbers of replicas, `seats` in all, none above `most`, with the least possible
/// largest load of a replica: each further one goes where that is largest. `seats` is at least the
/// number of experts, and at most `most` times that.
std::vector<int> replicas_by_load(const std::vector<std::int64_t>& loads, int seats, int most);

/// Replicas of experts, or experts, that want a place each.
struct Items {
  std::vector<int> expert;          ///< [items], equal ones side by side; -1: a place stays empty
  std::vector<std::int64_t> loads;  ///< [items]
};
/// So many of each expert, and empty ones up to `seats`; a load is a replica's equal part.
Items items_of(const std::vector<int>& replicas, const std::vector<std::int64_t>& loads, int seats);

/// [items] -> place, from the largest load on, each to the least loaded place with room that has
/// fewer than `alike` of its expert. `room` [places] holds all items; `alike` [places]: seats that
/// are in different ranks, so that it fits.
std::vector<int> spread(const Items& items, const std::vector<int>& room,
                        const std::vector<int>& alike);

/// Only `loads` [experts] are known: replicas by load, spread over nodes, there over ranks.
RanksOfExpert place_by_loads(const std::vector<std::int64_t>& loads, const PlacementRules& rules);

/// [experts] -> ranks, where `node_of` [items] has been decided: over each node's ranks by load.
RanksOfExpert over_ranks(const Items& items, const std::vector<int>& node_of, int num_experts,
                         const std::vector<int>& seats, const Layout& layout);

}  // namespace atl
