#pragma once
// Local search for places of experts with replicas, by what they cost as the program routes.

#include <cstdint>

#include "app/plan/expert_choices.hpp"
#include "app/plan/node_costs.hpp"
#include "app/plan/seats.hpp"

namespace atl {

/// Begins with `ranks_of_expert` and returns a placement whose busiest link, then its busiest rank,
/// is no busier for `choices`: two experts change their ranks, or one that has replicas gives a
/// place to another. Ranks keep their number of experts. Which replica a token takes depends on all
/// of its experts' places, so each try counts all tokens anew, `rules.work` numbers in all, about.
RanksOfExpert search_replicas(const ExpertChoices& choices, const RanksOfExpert& ranks_of_expert,
                              const PlacementRules& rules);

}  // namespace atl
