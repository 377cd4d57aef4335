#include "app/plan/layer_placement.hpp"

#include <algorithm>
#include <numeric>
#include <utility>

#include "app/plan/exact_division.hpp"
#include "app/plan/replica_search.hpp"
#include "app/plan/swap_search.hpp"

namespace atl {

namespace {

/// Every n-th token at most: what more of them say of a layer is little, and takes memory.
constexpr std::size_t most_tokens_searched = 32768;
/// The same where each try counts them all.
constexpr std::size_t most_tokens_tried = 1024;

ExpertChoices thinned(const ExpertChoices& choices, std::size_t most) {
  const std::size_t every = (choices.num_tokens() + most - 1) / most;
  if (every <= 1) return choices;
  ExpertChoices few{choices.num_experts, choices.top_k, {}};
  for (std::size_t t = 0; t < choices.num_tokens(); t += every) {
    few.experts.insert(few.experts.end(), choices.of(t).begin(), choices.of(t).end());
  }
  return few;
}

/// Choices of items in place of experts: of each expert's tokens every r-th is one replica's.
ExpertChoices choices_of_items(ExpertChoices choices, const std::vector<int>& replicas, int items) {
  std::vector<std::size_t> first(replicas.size());
  for (std::size_t e = 0; e + 1 < replicas.size(); ++e)
    first[e + 1] = first[e] + static_cast<std::size_t>(replicas[e]);
  std::vector<std::size_t> turn(replicas.size());
  for (std::uint16_t& expert : choices.experts) {
    const std::size_t which = turn[expert]++ % static_cast<std::size_t>(replicas[expert]);
    expert = static_cast<std::uint16_t>(first[expert] + which);
  }
  choices.num_experts = items;
  return choices;
}

std::vector<int> ranks_of_nodes(const Layout& layout) {
  std::vector<int> sizes;
  for (const auto& members : layout.of(Share::node).members)
    sizes.push_back(static_cast<int>(members.size()));
  return sizes;
}

/// [items] -> node, by searches from different beginnings.
std::vector<int> searched(const NodeProblem& problem, const Items& items,
                          const PlacementRules& rules, bool replicas) {
  SwapLimits limits;
  limits.most_here = ranks_of_nodes(rules.layout);
  int beyond = problem.choices.num_experts;  // empty seats are of no kind
  for (const int expert : items.expert) limits.kind.push_back(expert >= 0 ? expert : beyond++);
  const std::vector<int> by_load = spread(items, problem.capacity, limits.most_here);
  std::vector<std::vector<int>> beginnings = {by_load, by_load};
  if (!replicas) {
    std::vector<int> in_order;
    for (std::size_t n = 0; n < problem.num_nodes(); ++n)
      in_order.insert(in_order.end(), static_cast<std::size_t>(problem.capacity[n]),
                      static_cast<int>(n));
    beginnings.push_back(in_order);
  }
  limits.work = rules.work / static_cast<std::int64_t>(beginnings.size());
  std::vector<int> best = by_load;
  double least = busiest_of(problem, by_load);
  for (std::size_t i = 0; i < beginnings.size(); ++i) {
    limits.seed = rules.seed * 1000003 + i;
    limits.threshold = i == 0 ? 2 : 0.2;  // few experts want the wide one, many the narrow one
    std::vector<int> found = search_swaps(problem, beginnings[i], limits);
    const double busiest = busiest_of(problem, found);
    if (busiest >= least) continue;
    least = busiest;
    best = std::move(found);
  }
  return best;
}

}  // namespace

bool has_replicas(int num_experts, const PlacementRules& rules) {
  const int ranks = rules.layout.num_ranks();
  return rules.slots > 0 ? std::int64_t{rules.slots} * ranks > num_experts : ranks > num_experts;
}

NodeProblem node_problem(const ExpertChoices& choices, NodeCost cost, const PlacementRules& rules,
                         bool own_rows_count) {
  const std::vector<int> seats = seats_of(choices.num_experts, rules);
  NodeProblem problem{choices, {}, {}, std::move(cost)};
  for (const auto& members : rules.layout.of(Share::node).members) {
    int capacity = 0;
    for (const int rank : members) capacity += seats[static_cast<std::size_t>(rank)];
    problem.capacity.push_back(capacity);
    const double own = static_cast<double>(members.size()) / rules.layout.num_ranks();
    problem.share.push_back(own_rows_count ? 1 : 1 - own);
  }
  return problem;
}

RanksOfExpert place_layer(const ExpertChoices& choices, const PlacementRules& rules) {
  const int experts = choices.num_experts;
  const std::vector<int> seats = seats_of(experts, rules);
  const int all = std::accumulate(seats.begin(), seats.end(), 0);
  const bool replicas = has_replicas(experts, rules);
  const std::vector<std::int64_t> loads = choices.loads();
  NodeProblem problem =
      node_problem(choices, rows_there_and_back(rules.route, choices.top_k), rules, false);
  std::vector<int> of_expert(loads.size(), 1);
  if (replicas) of_expert = replicas_by_load(loads, all, rules.layout.num_ranks());
  const Items items = items_of(of_expert, loads, all);
  std::vector<int> node_of(items.expert.size());
  if (problem.num_nodes() > 1) {
    std::optional<std::vector<int>> exact;
    if (!replicas) exact = divide_exactly(problem);
    if (exact) {  // its empty seats are not divided: no rank needs them
      node_of = *exact;
    } else {
      problem.choices = choices_of_items(thinned(choices, most_tokens_searched), of_expert, all);
      node_of = searched(problem, items, rules, replicas);
    }
  }
  RanksOfExpert found = over_ranks(items, node_of, experts, seats, rules.layout);
  RanksOfExpert contiguous = contiguous_order(experts, rules);
  const auto order = [&](const RanksOfExpert& ranks) {
    const LayerLoads of = loads_of(choices, ranks, rules.layout, rules.route);
    return std::pair(of.link, of.rank);
  };
  RanksOfExpert best = order(contiguous) < order(found) ? contiguous : found;
  if (!replicas || problem.num_nodes() == 1) return best;
  found = search_replicas(thinned(choices, most_tokens_tried), best, rules);
  return order(best) < order(found) ? best : found;
}

}  // namespace atl
