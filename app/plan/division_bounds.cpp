#include "app/plan/division_bounds.hpp"

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

#include "app/plan/exact_division.hpp"

namespace atl {

namespace {

/// Nodes that differ in neither number are alike.
std::vector<std::pair<int, double>> kinds_of_nodes(const NodeProblem& problem) {
  std::vector<std::pair<int, double>> kinds;
  for (std::size_t n = 0; n < problem.num_nodes(); ++n) {
    const std::pair<int, double> kind(problem.capacity[n], problem.share[n]);
    if (kind.first > 0 && std::find(kinds.begin(), kinds.end(), kind) == kinds.end())
      kinds.push_back(kind);
  }
  return kinds;
}

/// Wherever the item is.
double least_with(const NodeProblem& problem, std::size_t item, double known) {
  double least = known;
  for (const auto& [capacity, share] : kinds_of_nodes(problem)) {
    if (share > 0) {
      least = std::min(least, share * least_cost_with(problem, item, capacity, known / share));
    } else {
      least = 0;
    }
  }
  return least;
}

/// With costs c(n) and shares s(n), max s(n) c(n) = z gives sum c(n) <= z sum 1 / s(n).
double average_bound(const NodeProblem& problem, double inner_pairs) {
  double weights = 0;
  for (const double share : problem.share) {
    if (share <= 0) return 0;
    weights += 1 / share;
  }
  return least_cost_in_all(problem, inner_pairs) / weights;
}

/// With items that no token has, so that each node has exactly its capacity.
NodeProblem filled(NodeProblem problem) {
  problem.choices.num_experts =
      std::accumulate(problem.capacity.begin(), problem.capacity.end(), 0);
  return problem;
}

}  // namespace

Bound bound_of(const NodeProblem& given, double inner_pairs, double known) {
  if (known <= 0) return {};
  if (const auto best = divide_exactly(given)) return {busiest_of(given, *best), Limit::exact};
  const NodeProblem problem = filled(given);
  Bound bound{std::min(known, average_bound(problem, inner_pairs)), Limit::average};
  // The two hottest: a third has never decided.
  std::vector<std::size_t> items(problem.num_items());
  std::iota(items.begin(), items.end(), 0);
  const std::vector<std::int64_t> loads = problem.choices.loads();
  std::stable_sort(items.begin(), items.end(),
                   [&](std::size_t a, std::size_t b) { return loads[a] > loads[b]; });
  for (std::size_t i = 0; i < std::min<std::size_t>(2, items.size()); ++i) {
    const double with = least_with(problem, items[i], known);
    if (with > bound.busiest) bound = {with, Limit::hottest_expert};
  }
  return bound;
}

}  // namespace atl
