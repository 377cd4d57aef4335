// Bounds for the sum over nodes.

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "app/plan/division_bounds.hpp"
#include "app/plan/symmetric_eigen.hpp"

namespace atl {

namespace {

/// [items, items]: tokens that chose both; the diagonal is 0.
std::vector<double> pairs_of(const ExpertChoices& choices) {
  const auto items = static_cast<std::size_t>(choices.num_experts);
  std::vector<double> pairs(items * items);
  for (std::size_t t = 0; t < choices.num_tokens(); ++t) {
    const auto chosen = choices.of(t);
    for (const std::uint16_t a : chosen) {
      for (const std::uint16_t b : chosen) {
        if (a != b) pairs[a * items + b] += 1;
      }
    }
  }
  return pairs;
}

/// What is free to choose in the bound, and the bound for one choice.
class PairBound {
 public:
  PairBound(std::vector<double> pairs, std::vector<int> capacity)
      : items_(static_cast<std::size_t>(std::sqrt(static_cast<double>(pairs.size())) + 0.5)),
        pairs_(std::move(pairs)),
        capacity_(std::move(capacity)),
        added_(pairs_.size()) {
    std::sort(capacity_.rbegin(), capacity_.rend());
    for (std::size_t i = 0; i < items_; ++i) {  // rows of sum 0: the usual beginning
      const auto row = pairs_.begin() + static_cast<std::ptrdiff_t>(i * items_);
      added_[i * items_ + i] =
          -std::accumulate(row, row + static_cast<std::ptrdiff_t>(items_), 0.0) / 2;
    }
  }

  double value() {
    std::vector<double> matrix(pairs_);
    double trace = 0;
    double norm = 0;
    for (std::size_t i = 0; i < matrix.size(); ++i) {
      matrix[i] += added_[i];
      norm += matrix[i] * matrix[i];
    }
    for (std::size_t i = 0; i < items_; ++i) trace += added_[i * items_ + i];
    const Eigen eigen = eigen_of(std::move(matrix), items_);
    double sum = 0;
    together_.assign(pairs_.size(), 0);
    for (std::size_t n = 0; n < std::min(capacity_.size(), items_); ++n) {
      const std::size_t which = items_ - 1 - n;
      sum += capacity_[n] * eigen.values[which];
      add_outer(eigen.vectors.data() + which * items_, capacity_[n]);
    }
    // Beyond what rounding may have done to the eigenvalues.
    const double rounding = 1e-11 * std::sqrt(norm) * static_cast<double>(items_);
    return (sum - trace) / 2 + rounding;
  }

  /// Against the gradient at the last value(), as far as brings it to `target` where it is linear.
  void step(double value, double target) {
    double norm = 0;
    for (std::size_t i = 0; i < items_; ++i) {
      for (std::size_t j = 0; j < items_; ++j) {
        double& slope = together_[i * items_ + j];
        if (i == j) slope -= 1;
        if (i != j && slope > 0 && added_[i * items_ + j] <= 0) slope = 0;
        norm += slope * slope;
      }
    }
    if (norm <= 1e-12) return;
    const double length = 2 * (value - target) / norm;
    for (std::size_t i = 0; i < items_; ++i) {
      for (std::size_t j = 0; j < items_; ++j) {
        double& added = added_[i * items_ + j];
        added -= length * together_[i * items_ + j];
        if (i != j) added = std::max(added, 0.0);
      }
    }
  }

 private:
  void add_outer(const double* vector, double weight) {
    for (std::size_t i = 0; i < items_; ++i) {
      for (std::size_t j = 0; j < items_; ++j)
        together_[i * items_ + j] += weight * vector[i] * vector[j];
    }
  }

  std::size_t items_;
  std::vector<double> pairs_;
  std::vector<int> capacity_;     // falling
  std::vector<double> added_;     // D + Z, [items, items]
  std::vector<double> together_;  // at the last value
};

}  // namespace

// Let X be [items, items] with 1 where two items are on one node, else 0, and W the pairs. Inner
// pairs are <W, X> / 2. For any diagonal D and any Z >= 0 off it, <W, X> <= <W + Z + D, X> - tr D,
// as X >= 0 and its diagonal is 1. X has the eigenvalues capacity (of each node; the indicator
// vectors are orthogonal) and 0, so that <M, X> is at most the sum of its eigenvalues times M's,
// both falling (von Neumann). With Z = 0 this is Donath's and Hoffman's bound (1973). Any D and Z
// will do; subgradients lead to good ones.
double most_inner_pairs(const NodeProblem& problem) {
  // With items that no token has, where nodes have more room.
  ExpertChoices choices = problem.choices;
  choices.num_experts = std::accumulate(problem.capacity.begin(), problem.capacity.end(), 0);
  const auto items = static_cast<std::size_t>(choices.num_experts);
  std::vector<double> pairs = pairs_of(choices);
  const double all = std::accumulate(pairs.begin(), pairs.end(), 0.0) / 2;
  constexpr std::size_t most_items = 1024;  // beyond, it would take minutes
  if (problem.num_nodes() < 2 || items > most_items || all == 0) return all;
  const int steps =
      items <= 64 ? 200 : std::max<int>(3, static_cast<int>(200 * 64 * 64 / (items * items)));
  PairBound bound(std::move(pairs), problem.capacity);
  double best = all;
  for (int i = 0; i < steps; ++i) {
    const double value = bound.value();
    best = std::min(best, value);
    bound.step(value, best * (1 - 0.05 * (steps - i) / steps));
  }
  return best;
}

// A token whose items are on nodes in parts p1, p2, ... has the inner pairs sum p(p-1)/2 and costs
// sum cost(p). The lower convex hull h of all such points is below each token's point, so the mean
// cost is at least h(mean inner pairs) (Jensen), and at least the least h(x) for x up to a bound of
// that mean.
double least_cost_in_all(const NodeProblem& problem, double inner_pairs) {
  const auto top_k = static_cast<std::size_t>(problem.choices.top_k);
  const double tokens = static_cast<double>(problem.choices.num_tokens());
  if (tokens == 0) return 0;
  const auto largest =
      static_cast<std::size_t>(*std::max_element(problem.capacity.begin(), problem.capacity.end()));
  const double none = std::numeric_limits<double>::infinity();
  const std::size_t most_pairs = top_k * (top_k - 1) / 2;
  // [items][inner pairs]: the least cost of so many items in parts.
  std::vector<std::vector<double>> least(top_k + 1, std::vector<double>(most_pairs + 1, none));
  least[0][0] = 0;
  for (std::size_t all = 1; all <= top_k; ++all) {
    for (std::size_t part = 1; part <= std::min(all, largest); ++part) {
      const std::size_t inside = part * (part - 1) / 2;
      for (std::size_t x = inside; x <= most_pairs; ++x) {
        least[all][x] = std::min(least[all][x], least[all - part][x - inside] + problem.cost[part]);
      }
    }
  }
  const std::vector<double>& points = least[top_k];
  const double mean = std::min(inner_pairs / tokens, static_cast<double>(most_pairs));
  double hull = none;  // at the best x up to `mean`: of each pair of points around it
  for (std::size_t a = 0; a <= most_pairs; ++a) {
    if (points[a] == none) continue;
    if (static_cast<double>(a) <= mean) hull = std::min(hull, points[a]);
    for (std::size_t b = a + 1; b <= most_pairs; ++b) {
      if (points[b] == none || static_cast<double>(a) > mean || static_cast<double>(b) < mean)
        continue;
      const double at = (mean - static_cast<double>(a)) / static_cast<double>(b - a);
      hull = std::min(hull, points[a] + at * (points[b] - points[a]));
    }
  }
  return hull * tokens;
}

}  // namespace atl
