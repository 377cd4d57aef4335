#include "app/plan/node_costs.hpp"

#include <algorithm>

#include "app/plan/placement.hpp"
#include "compute/expert_places.hpp"

namespace atl {

NodeCost rows_there_and_back(Route route, int top_k) {
  NodeCost cost(static_cast<std::size_t>(top_k) + 1);
  for (int there = 1; there <= top_k; ++there) {
    const int back = there == top_k && route == Route::nodes ? 1 : there;
    cost[static_cast<std::size_t>(there)] = back + (route == Route::nodes ? 1 : there);
  }
  return cost;
}

NodeCost rows_there(Route route, int top_k) {
  NodeCost cost(static_cast<std::size_t>(top_k) + 1);
  for (int there = 1; there <= top_k; ++there) {
    cost[static_cast<std::size_t>(there)] = route == Route::nodes ? 1 : there;
  }
  return cost;
}

namespace {

/// Adds up, token by token, what comes to nodes and ranks.
class Loads {
 public:
  Loads(const LayerPlacement& placement, const Layout& layout, Route route, int top_k)
      : placement_(placement),
        layout_(layout),
        link_cost_(rows_there_and_back(route, top_k)),
        node_cost_(rows_there(route, top_k)),
        here_(static_cast<std::size_t>(layout.num_nodes())),
        link_(here_.size()),
        node_(here_.size()),
        rank_(static_cast<std::size_t>(layout.num_ranks())) {}

  /// A token at home on `home`; `weight`: how many such ones.
  void add(const compute::ExpertPlaces& places, std::span<const std::int32_t> chosen, int home,
           double weight) {
    for (const std::int32_t replica : chosen) {
      const compute::ReplicaPlace& place = places.replicas[static_cast<std::size_t>(replica)];
      ++here_[static_cast<std::size_t>(place.node)];
      const int rank = placement_.replicas()[static_cast<std::size_t>(place.place)].rank;
      rank_[static_cast<std::size_t>(rank)] += weight;
    }
    for (const std::int32_t replica : chosen) {
      const auto node =
          static_cast<std::size_t>(places.replicas[static_cast<std::size_t>(replica)].node);
      node_[node] += weight * node_cost_[here_[node]];
      if (home == any_home) {
        link_[node] += weight * link_cost_[here_[node]] * share_elsewhere(node);
      } else if (home != static_cast<int>(node)) {
        link_[node] += weight * link_cost_[here_[node]];
      }
      here_[node] = 0;  // counted; the cost of none is none
    }
  }

  LayerLoads busiest() const {
    return {*std::max_element(link_.begin(), link_.end()),
            *std::max_element(node_.begin(), node_.end()),
            *std::max_element(rank_.begin(), rank_.end())};
  }

  static constexpr int any_home = -1;

 private:
  double share_elsewhere(std::size_t node) const {
    return 1 -
           static_cast<double>(layout_.of(Share::node).members[node].size()) / layout_.num_ranks();
  }

  const LayerPlacement& placement_;
  const Layout& layout_;
  NodeCost link_cost_, node_cost_;
  std::vector<std::size_t> here_;  // [nodes]: of the token's experts
  std::vector<double> link_, node_, rank_;
};

}  // namespace

LayerLoads loads_of(const ExpertChoices& choices, const RanksOfExpert& ranks_of_expert,
                    const Layout& layout, Route route) {
  const LayerPlacement placement(ranks_of_expert, layout);
  Loads loads(placement, layout, route, choices.top_k);
  // A node's tokens are dealt to its ranks in turn: of these, ways differ by who has a replica.
  std::vector<compute::ExpertPlaces> seen;
  const bool replicas = placement.replicas().size() > ranks_of_expert.size();
  for (int rank = 0; rank < (replicas ? layout.num_ranks() : 1); ++rank) {
    seen.push_back(placement.places_seen_by(rank, layout));
  }
  std::vector<std::int32_t> experts(static_cast<std::size_t>(choices.top_k));
  std::vector<std::int32_t> chosen(experts.size());
  const auto choose = [&](const compute::ExpertPlaces& places, std::size_t turn) {
    compute::choose_replicas(places.table(), experts.data(), choices.top_k,
                             static_cast<int>(turn & 0xffffff), chosen.data());
  };
  for (std::size_t t = 0; t < choices.num_tokens(); ++t) {
    std::copy_n(choices.of(t).begin(), experts.size(), experts.begin());
    if (!replicas) {
      choose(seen[0], t);
      loads.add(seen[0], chosen, Loads::any_home, 1);
      continue;
    }
    for (int node = 0; node < layout.num_nodes(); ++node) {
      const auto& members = layout.of(Share::node).members[static_cast<std::size_t>(node)];
      const auto rank = static_cast<std::size_t>(members[t % members.size()]);
      choose(seen[rank], t / members.size());
      loads.add(seen[rank], chosen, node, static_cast<double>(members.size()) / layout.num_ranks());
    }
  }
  return loads.busiest();
}

std::vector<std::int64_t> costs_of(const NodeProblem& problem, const std::vector<int>& node_of) {
  std::vector<std::int64_t> costs(problem.num_nodes());
  std::vector<std::size_t> here(problem.num_nodes());
  for (std::size_t t = 0; t < problem.choices.num_tokens(); ++t) {
    for (const std::uint16_t item : problem.choices.of(t))
      ++here[static_cast<std::size_t>(node_of[item])];
    for (const std::uint16_t item : problem.choices.of(t)) {
      const auto node = static_cast<std::size_t>(node_of[item]);
      costs[node] += problem.cost[here[node]];
      here[node] = 0;
    }
  }
  return costs;
}

double busiest_of(const NodeProblem& problem, const std::vector<int>& node_of) {
  const std::vector<std::int64_t> costs = costs_of(problem, node_of);
  double busiest = 0;
  for (std::size_t n = 0; n < costs.size(); ++n)
    busiest = std::max(busiest, static_cast<double>(costs[n]) * problem.share[n]);
  return busiest;
}

}  // namespace atl
