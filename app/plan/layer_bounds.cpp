// How good a placement can be at best.

#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>

#include "app/plan/layer_placement.hpp"

namespace atl {

namespace {

/// Some rank computes the mean; the hottest expert's replicas have their part each; and where ranks
/// have several seats but no replicas, of the j R + 1 hottest experts j + 1 are on one rank.
double rank_bound(const std::vector<std::int64_t>& of_experts, const PlacementRules& rules) {
  const auto experts = static_cast<int>(of_experts.size());
  const auto ranks = static_cast<std::size_t>(rules.layout.num_ranks());
  std::vector<std::int64_t> loads = of_experts;
  std::sort(loads.rbegin(), loads.rend());
  const double all =
      static_cast<double>(std::accumulate(loads.begin(), loads.end(), std::int64_t{0}));
  double bound = all / static_cast<double>(ranks);
  if (has_replicas(experts, rules)) {
    const std::vector<int> seats = seats_of(experts, rules);
    const std::vector<int> replicas = replicas_by_load(
        loads, std::accumulate(seats.begin(), seats.end(), 0), rules.layout.num_ranks());
    for (std::size_t e = 0; e < loads.size(); ++e)
      bound = std::max(bound, static_cast<double>(loads[e]) / replicas[e]);
    return bound;
  }
  for (std::size_t j = 0; j * ranks < loads.size(); ++j) {
    double together = 0;  // the j + 1 least loaded of them
    for (std::size_t i = j * ranks - j; i <= j * ranks; ++i)
      together += static_cast<double>(loads[i]);
    bound = std::max(bound, together);
  }
  return bound;
}

struct ReplicaFacts {
  std::vector<double> shares;  // [nodes]: of the ranks, falling
  std::vector<int> capacity;   // [nodes]
  int most = 1;                // nodes that one expert can be on
  double least_cost = 0;       // of a token on a node
  double hottest = 0, tokens = 0, top_k = 1;
  std::vector<std::int64_t> loads;  // falling
};

ReplicaFacts facts_of(const NodeProblem& problem, const PlacementRules& rules) {
  ReplicaFacts facts;
  facts.capacity = problem.capacity;
  for (const auto& members : rules.layout.of(Share::node).members) {
    facts.shares.push_back(static_cast<double>(members.size()) / rules.layout.num_ranks());
  }
  const int all = std::accumulate(problem.capacity.begin(), problem.capacity.end(), 0);
  facts.most =
      std::min(static_cast<int>(problem.num_nodes()), 1 + all - problem.choices.num_experts);
  facts.least_cost = *std::min_element(problem.cost.begin() + 1, problem.cost.end());
  facts.loads = problem.choices.loads();
  std::sort(facts.loads.rbegin(), facts.loads.rend());
  facts.hottest = static_cast<double>(facts.loads.front());
  facts.tokens = static_cast<double>(problem.choices.num_tokens());
  facts.top_k = problem.choices.top_k;
  return facts;
}

/// A link's, with replicas. The hottest expert on m nodes: tokens at home on others go to one of
/// these. All experts: a token goes nowhere only where its home's node has all of its experts, and
/// of those that a node has, tokens have top_k each, so that there are no more such tokens than
/// the loads of as many hottest experts over top_k.
Bound link_bound_with_replicas(const NodeProblem& problem, const PlacementRules& rules) {
  const ReplicaFacts facts = facts_of(problem, rules);
  std::vector<double> largest = facts.shares;
  std::sort(largest.rbegin(), largest.rend());
  double at_home = 0;
  double hot = std::numeric_limits<double>::infinity();
  for (int m = 1; m <= facts.most; ++m) {
    at_home += largest[static_cast<std::size_t>(m) - 1];
    hot = std::min(hot, facts.least_cost * facts.hottest * std::max(0.0, 1 - at_home) / m);
  }
  double away = 0;
  for (std::size_t n = 0; n < facts.shares.size(); ++n) {
    const auto has = std::min(static_cast<std::size_t>(facts.capacity[n]), facts.loads.size());
    const double inside =
        static_cast<double>(std::accumulate(facts.loads.begin(),
                                            facts.loads.begin() + static_cast<std::ptrdiff_t>(has),
                                            std::int64_t{0})) /
        facts.top_k;
    away += facts.shares[n] * std::max(0.0, facts.tokens - inside);
  }
  const double average = facts.least_cost * away / static_cast<double>(facts.shares.size());
  return hot > average ? Bound{hot, Limit::hottest_expert} : Bound{average, Limit::average};
}

/// A node's: the hottest expert's tokens are on as many nodes as it can be on; every token is on
/// one node at least.
Bound node_bound_with_replicas(const NodeProblem& problem, const PlacementRules& rules) {
  const ReplicaFacts facts = facts_of(problem, rules);
  const double hot = facts.least_cost * facts.hottest / facts.most;
  const double average = facts.least_cost * facts.tokens / static_cast<double>(facts.shares.size());
  return hot > average ? Bound{hot, Limit::hottest_expert} : Bound{average, Limit::average};
}

}  // namespace

LayerBounds bounds_of(const ExpertChoices& choices, const PlacementRules& rules,
                      const LayerLoads& known) {
  LayerBounds bounds;
  bounds.rank = rank_bound(choices.loads(), rules);
  const NodeProblem link =
      node_problem(choices, rows_there_and_back(rules.route, choices.top_k), rules, false);
  const NodeProblem node =
      node_problem(choices, rows_there(rules.route, choices.top_k), rules, true);
  if (has_replicas(choices.num_experts, rules)) {
    bounds.link = link_bound_with_replicas(link, rules);
    bounds.node = node_bound_with_replicas(node, rules);
    return bounds;
  }
  const double inner_pairs = most_inner_pairs(link);  // which depend on no cost
  bounds.link = bound_of(link, inner_pairs, known.link);
  bounds.node = bound_of(node, inner_pairs, known.node);
  return bounds;
}

}  // namespace atl
