#include "app/plan/division_bounds.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include "app/plan/exact_division.hpp"
#include "app/plan/swap_search.hpp"
#include "app/plan/symmetric_eigen.hpp"
#include "tests/app/skewed_choices.hpp"

namespace atl {
namespace {

NodeProblem problem_with(ExpertChoices choices, std::vector<int> capacity,
                         std::vector<double> share, NodeCost cost) {
  return {std::move(choices), std::move(capacity), std::move(share), std::move(cost)};
}

/// Problems of 8 items: equal nodes, uneven ones, nodes with room to spare; both routes.
std::vector<NodeProblem> small_problems() {
  std::vector<NodeProblem> problems;
  unsigned seed = 0;
  for (const int top_k : {1, 2, 3, 5}) {
    for (const Route route : {Route::nodes, Route::flat}) {
      const auto made = [&] { return skewed_choices(8, top_k, 200, ++seed); };
      for (const NodeCost& cost : {rows_there_and_back(route, top_k), rows_there(route, top_k)}) {
        problems.push_back(problem_with(made(), {2, 2, 2, 2}, {1, 1, 1, 1}, cost));
        problems.push_back(problem_with(made(), {4, 4}, {0.5, 0.5}, cost));
        problems.push_back(problem_with(made(), {5, 2, 1}, {0.375, 0.75, 0.875}, cost));
        problems.push_back(problem_with(made(), {4, 3, 3}, {0.6, 0.7, 0.7}, cost));
      }
    }
  }
  return problems;
}

/// Calls visit(node_of) for every division that keeps the capacities.
void for_each_division(const NodeProblem& problem,
                       const std::function<void(const std::vector<int>&)>& visit) {
  std::vector<int> node_of(problem.num_items());
  std::vector<int> left = problem.capacity;
  const std::function<void(std::size_t)> go = [&](std::size_t item) {
    if (item == node_of.size()) return visit(node_of);
    for (std::size_t n = 0; n < left.size(); ++n) {
      if (left[n] == 0) continue;
      --left[n];
      node_of[item] = static_cast<int>(n);
      go(item + 1);
      ++left[n];
    }
  };
  go(0);
}

double least_of_all(const NodeProblem& problem) {
  double least = 1e300;
  for_each_division(
      problem, [&](const auto& node_of) { least = std::min(least, busiest_of(problem, node_of)); });
  return least;
}

double inner_pairs(const NodeProblem& problem, const std::vector<int>& node_of) {
  double pairs = 0;
  for (std::size_t t = 0; t < problem.choices.num_tokens(); ++t) {
    const auto token = problem.choices.of(t);
    for (std::size_t i = 0; i < token.size(); ++i) {
      for (std::size_t j = 0; j < i; ++j) pairs += node_of[token[i]] == node_of[token[j]];
    }
  }
  return pairs;
}

TEST(Division, ExactIsTheBestOfAll) {
  for (const NodeProblem& problem : small_problems()) {
    const auto found = divide_exactly(problem);
    ASSERT_TRUE(found);
    std::vector<int> here(problem.num_nodes());
    for (const int node : *found) ++here[static_cast<std::size_t>(node)];
    for (std::size_t n = 0; n < here.size(); ++n) EXPECT_LE(here[n], problem.capacity[n]);
    EXPECT_DOUBLE_EQ(busiest_of(problem, *found), least_of_all(problem));
  }
}

TEST(Division, ExactRefusesMoreThanItCan) {
  EXPECT_FALSE(divide_exactly(
      problem_with(skewed_choices(17, 2, 50, 1), {9, 8}, {1, 1}, rows_there(Route::nodes, 2))));
}

TEST(DivisionBounds, HoldForEveryDivision) {
  for (const NodeProblem& problem : small_problems()) {
    const double most_pairs = most_inner_pairs(problem);
    double pairs = 0;
    double cost = 1e300;
    std::vector<std::int64_t> with(problem.num_items(), 1 << 30);  // of the nodes with each item
    for_each_division(problem, [&](const auto& node_of) {
      const double inside = inner_pairs(problem, node_of);
      pairs = std::max(pairs, inside);
      const auto costs = costs_of(problem, node_of);
      const auto sum =
          static_cast<double>(std::accumulate(costs.begin(), costs.end(), std::int64_t{0}));
      EXPECT_LE(least_cost_in_all(problem, inside), sum * (1 + 1e-12));
      cost = std::min(cost, sum);
      for (std::size_t i = 0; i < node_of.size(); ++i) {
        const auto node = static_cast<std::size_t>(node_of[i]);
        if (problem.capacity[node] == problem.capacity[0]) with[i] = std::min(with[i], costs[node]);
      }
    });
    EXPECT_GE(most_pairs, pairs);
    EXPECT_LE(least_cost_in_all(problem, most_pairs), cost * (1 + 1e-12));
    const int items = std::accumulate(problem.capacity.begin(), problem.capacity.end(), 0);
    if (items > 8) continue;  // sets of the whole capacity are others then
    for (std::size_t i = 0; i < with.size(); ++i) {
      EXPECT_LE(least_cost_with(problem, i, problem.capacity[0], 1e9),
                static_cast<double>(with[i]) + 1e-9);
    }
  }
}

TEST(DivisionBounds, OfOneItemAreExactForPairs) {
  // With two experts a token, costs bend by pairs alone: branch and bound finds the very least.
  const NodeProblem problem =
      problem_with(skewed_choices(14, 2, 400, 3), {7, 7}, {1, 1}, rows_there(Route::nodes, 2));
  std::int64_t least = 1 << 30;
  for_each_division(problem, [&](const auto& node_of) {
    least = std::min(least, costs_of(problem, node_of)[static_cast<std::size_t>(node_of[5])]);
  });
  EXPECT_EQ(least_cost_with(problem, 5, 7, 1e9), static_cast<double>(least));
  EXPECT_EQ(least_cost_with(problem, 5, 7, 10), 10) << "never above what is known";
}

TEST(DivisionBounds, AreBelowWhatASearchFinds) {
  for (const int top_k : {1, 2, 4}) {
    const NodeProblem problem =
        problem_with(skewed_choices(24, top_k, 1000, 7), {6, 6, 6, 6}, {0.75, 0.75, 0.75, 0.75},
                     rows_there_and_back(Route::nodes, top_k));
    std::vector<int> in_order(24);
    for (std::size_t i = 0; i < 24; ++i) in_order[i] = static_cast<int>(i / 6);
    SwapLimits limits{std::vector<int>(24), {1, 1, 1, 1}, 20000000, 1};
    std::iota(limits.kind.begin(), limits.kind.end(), 0);
    const double found = busiest_of(problem, search_swaps(problem, in_order, limits));
    EXPECT_LT(found, busiest_of(problem, in_order));
    const Bound bound = bound_of(problem, most_inner_pairs(problem), found);
    EXPECT_LE(bound.busiest, found);
    EXPECT_GE(bound.busiest, (top_k <= 2 ? 0.8 : 0.6) * found);
  }
}

TEST(SwapSearch, ComesWithinAPercentOfTheBest) {
  for (unsigned seed = 1; seed <= 3; ++seed) {
    for (const int top_k : {2, 4}) {
      const NodeProblem problem =
          problem_with(skewed_choices(16, top_k, 500, seed), {4, 4, 4, 4}, {1, 1, 1, 1},
                       rows_there_and_back(Route::nodes, top_k));
      std::vector<int> in_order(16);
      for (std::size_t i = 0; i < 16; ++i) in_order[i] = static_cast<int>(i / 4);
      SwapLimits limits{std::vector<int>(16), {1, 1, 1, 1}, 8000000, seed};
      std::iota(limits.kind.begin(), limits.kind.end(), 0);
      double found = busiest_of(problem, in_order);
      limits.threshold = 2;
      for (limits.seed = 0; limits.seed < 6; ++limits.seed)
        found = std::min(found, busiest_of(problem, search_swaps(problem, in_order, limits)));
      EXPECT_LE(found, 1.01 * busiest_of(problem, *divide_exactly(problem)));
      EXPECT_EQ(search_swaps(problem, in_order, limits), search_swaps(problem, in_order, limits));
    }
  }
}

TEST(SwapSearch, FindsGroupsThatWerePutThere) {
  // Tokens of two of five experts that are 6 numbers apart: a node each, and nothing better.
  ExpertChoices choices{30, 2, {}};
  for (int t = 0; t < 600; ++t) {
    for (const int place : {t / 6, t / 6 + 1 + t / 300})
      choices.experts.push_back(static_cast<std::uint16_t>(t % 6 + 6 * (place % 5)));
  }
  const NodeProblem problem =
      problem_with(std::move(choices), std::vector<int>(6, 5), std::vector<double>(6, 1),
                   rows_there_and_back(Route::nodes, 2));
  std::vector<int> in_order(30);
  for (std::size_t i = 0; i < 30; ++i) in_order[i] = static_cast<int>(i / 5);
  SwapLimits limits{std::vector<int>(30), std::vector<int>(6, 1), 100000000, 1};
  std::iota(limits.kind.begin(), limits.kind.end(), 0);
  EXPECT_EQ(busiest_of(problem, search_swaps(problem, in_order, limits)), 200);  // 100 there, back
}

TEST(SymmetricEigen, ValuesAndVectorsBelongToTheMatrix) {
  constexpr std::size_t size = 37;
  std::mt19937 random(11);
  std::vector<double> matrix(size * size);
  for (std::size_t i = 0; i < size; ++i) {
    for (std::size_t j = 0; j <= i; ++j)
      matrix[i * size + j] = matrix[j * size + i] = static_cast<double>(random() % 1000) - 300;
  }
  for (std::size_t j = 0; j < size; ++j) matrix[3 * size + j] = matrix[j * size + 3] = 0;
  const Eigen eigen = eigen_of(matrix, size);
  EXPECT_TRUE(std::is_sorted(eigen.values.begin(), eigen.values.end()));
  double sum = 0;
  double trace = 0;
  for (std::size_t v = 0; v < size; ++v) {
    const double* vector = eigen.vectors.data() + v * size;
    double length = 0;
    for (std::size_t i = 0; i < size; ++i) {
      double product = 0;
      for (std::size_t j = 0; j < size; ++j) product += matrix[i * size + j] * vector[j];
      EXPECT_NEAR(product, eigen.values[v] * vector[i], 1e-8);
      length += vector[i] * vector[i];
    }
    EXPECT_NEAR(length, 1, 1e-12);
    sum += eigen.values[v];
    trace += matrix[v * size + v];
  }
  EXPECT_NEAR(sum, trace, 1e-8);
  EXPECT_EQ(eigen_of({2}, 1).values, std::vector<double>{2});
  EXPECT_EQ(eigen_of({0, 0, 0, 0}, 2).values, (std::vector<double>{0, 0}));
}

}  // namespace
}  // namespace atl
