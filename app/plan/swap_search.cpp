#include "app/plan/swap_search.hpp"

#include <algorithm>
#include <cstddef>

#include "app/plan/random.hpp"

namespace atl {

namespace {

/// A division of items, with what any swap of two of them would change.
class Division {
 public:
  Division(const NodeProblem& problem, std::vector<int> node_of)
      : problem_(problem),
        items_(problem.num_items()),
        nodes_(problem.num_nodes()),
        node_of_(std::move(node_of)),
        here_(problem.choices.num_tokens() * nodes_),
        costs_(costs_of(problem, node_of_)),
        change_(items_ * nodes_) {
    list_tokens();
    for (std::size_t t = 0; t < problem_.choices.num_tokens(); ++t) {
      for (const std::uint16_t item : problem_.choices.of(t)) ++here(t, node(item));
    }
    for (std::size_t t = 0; t < problem_.choices.num_tokens(); ++t) {
      for (std::size_t n = 0; n < nodes_; ++n) count(t, n, 1);
    }
  }

  std::size_t node(std::size_t item) const { return static_cast<std::size_t>(node_of_[item]); }
  const std::vector<int>& node_of() const { return node_of_; }
  const std::vector<std::int64_t>& costs() const { return costs_; }

  struct Change {
    std::int64_t of_a = 0;  ///< what the node of the first item costs more
    std::int64_t of_b = 0;
    std::int64_t looked_at = 0;  ///< tokens
  };
  /// By a swap of two items of different nodes.
  Change change_by(std::size_t a, std::size_t b) const {
    const std::size_t x = node(a);
    const std::size_t y = node(b);
    Change change{change_[a * nodes_ + x] + change_[b * nodes_ + x],
                  change_[b * nodes_ + y] + change_[a * nodes_ + y], 0};
    const std::size_t pair = std::min(a, b) * items_ + std::max(a, b);
    change.looked_at = static_cast<std::int64_t>(first_of_pair_[pair + 1] - first_of_pair_[pair]);
    for (std::size_t i = first_of_pair_[pair]; i < first_of_pair_[pair + 1]; ++i) {
      const std::size_t t = tokens_of_pair_[i];  // has as many items on each node as before
      change.of_a -= step_down(here(t, x)) + step_up(here(t, x));
      change.of_b -= step_down(here(t, y)) + step_up(here(t, y));
    }
    return change;
  }

  /// Returns how many numbers it looked at.
  std::int64_t swap(std::size_t a, std::size_t b, const Change& change) {
    const std::size_t x = node(a);
    const std::size_t y = node(b);
    costs_[x] += change.of_a;
    costs_[y] += change.of_b;
    for_each_token_of(a, b, [&](std::size_t t, bool, bool) {
      count(t, x, -1);
      count(t, y, -1);
    });
    std::swap(node_of_[a], node_of_[b]);
    for_each_token_of(a, b, [&](std::size_t t, bool has_a, bool has_b) {
      here(t, x) = static_cast<std::uint8_t>(here(t, x) - has_a + has_b);
      here(t, y) = static_cast<std::uint8_t>(here(t, y) - has_b + has_a);
      count(t, x, 1);
      count(t, y, 1);
    });
    const std::size_t tokens = first_of_item_[a + 1] - first_of_item_[a] + first_of_item_[b + 1] -
                               first_of_item_[b] - static_cast<std::size_t>(change.looked_at);
    return static_cast<std::int64_t>(tokens) * 4 * problem_.choices.top_k;
  }

 private:
  std::uint8_t& here(std::size_t token, std::size_t n) { return here_[token * nodes_ + n]; }
  std::size_t here(std::size_t token, std::size_t n) const { return here_[token * nodes_ + n]; }
  int step_down(std::size_t there) const { return problem_.cost[there - 1] - problem_.cost[there]; }
  int step_up(std::size_t there) const { return problem_.cost[there + 1] - problem_.cost[there]; }

  /// Adds (or takes away) what a token says of a node to the changes that its items would make
  /// there: by leaving, of items that are there, else by coming.
  void count(std::size_t t, std::size_t n, int sign) {
    const std::size_t there = static_cast<const Division&>(*this).here(t, n);
    const auto all = static_cast<std::size_t>(problem_.choices.top_k);
    const int leaving = there == 0 ? 0 : sign * step_down(there);
    const int coming = there == all ? 0 : sign * step_up(there);
    for (const std::uint16_t item : problem_.choices.of(t))
      change_[item * nodes_ + n] += node(item) == n ? leaving : coming;
  }

  template <class Visit>
  void for_each_token_of(std::size_t a, std::size_t b, const Visit& visit) const {
    for (const std::size_t item : {a, b}) {
      for (std::size_t i = first_of_item_[item]; i < first_of_item_[item + 1]; ++i) {
        const std::size_t t = tokens_of_item_[i];
        const auto all = problem_.choices.of(t);
        const bool both = std::find(all.begin(), all.end(), item == a ? b : a) != all.end();
        if (both && item == b) continue;  // has been visited
        visit(t, both || item == a, both || item == b);
      }
    }
  }

  /// Tokens of each item, and of each pair of items.
  void list_tokens() {
    first_of_item_.assign(items_ + 1, 0);
    first_of_pair_.assign(items_ * items_ + 1, 0);
    const auto for_each = [&](const auto& visit_item, const auto& visit_pair) {
      for (std::size_t t = 0; t < problem_.choices.num_tokens(); ++t) {
        const auto all = problem_.choices.of(t);
        for (std::size_t i = 0; i < all.size(); ++i) {
          visit_item(all[i], t);
          for (std::size_t j = 0; j < i; ++j) {
            visit_pair(std::min(all[i], all[j]) * items_ + std::max(all[i], all[j]), t);
          }
        }
      }
    };
    for_each([&](std::size_t item, std::size_t) { ++first_of_item_[item + 1]; },
             [&](std::size_t pair, std::size_t) { ++first_of_pair_[pair + 1]; });
    for (std::size_t i = 0; i < items_; ++i) first_of_item_[i + 1] += first_of_item_[i];
    for (std::size_t i = 0; i < items_ * items_; ++i) first_of_pair_[i + 1] += first_of_pair_[i];
    tokens_of_item_.resize(first_of_item_.back());
    tokens_of_pair_.resize(first_of_pair_.back());
    std::vector<std::size_t> item_at(first_of_item_.begin(), first_of_item_.end());
    std::vector<std::size_t> pair_at(first_of_pair_.begin(), first_of_pair_.end());
    for_each(
        [&](std::size_t item, std::size_t t) {
          tokens_of_item_[item_at[item]++] = static_cast<std::uint32_t>(t);
        },
        [&](std::size_t pair, std::size_t t) {
          tokens_of_pair_[pair_at[pair]++] = static_cast<std::uint32_t>(t);
        });
  }

  const NodeProblem& problem_;
  std::size_t items_, nodes_;
  std::vector<int> node_of_;
  std::vector<std::uint8_t> here_;    // [tokens, nodes]: items of a token on a node
  std::vector<std::int64_t> costs_;   // [nodes]
  std::vector<std::int64_t> change_;  // [items, nodes]: of the node, by going there or leaving it
  std::vector<std::size_t> first_of_item_, first_of_pair_;  // [items + 1], [items * items + 1]
  std::vector<std::uint32_t> tokens_of_item_, tokens_of_pair_;
};

/// The nodes' loads over their mean, so that the 16th power stays in range.
class Measure {
 public:
  Measure(const NodeProblem& problem, const std::vector<std::int64_t>& costs) : problem_(problem) {
    double sum = 0;
    for (std::size_t n = 0; n < costs.size(); ++n) sum += of(n, costs[n]);
    if (sum > 0) scale_ = static_cast<double>(costs.size()) / sum;
  }
  double of(std::size_t node, std::int64_t cost) const {
    return static_cast<double>(cost) * problem_.share[node] * scale_;
  }
  double power(std::size_t node, std::int64_t cost) const {
    double x = of(node, cost);
    for (int i = 0; i < 4; ++i) x *= x;
    return x;
  }
  double busiest(const std::vector<std::int64_t>& costs) const {
    double busiest = 0;
    for (std::size_t n = 0; n < costs.size(); ++n) busiest = std::max(busiest, of(n, costs[n]));
    return busiest;
  }

 private:
  const NodeProblem& problem_;
  double scale_ = 1;
};

/// How many items of a kind each node has.
class Kinds {
 public:
  Kinds(const SwapLimits& limits, const std::vector<int>& node_of)
      : limits_(limits),
        kinds_(static_cast<std::size_t>(*std::max_element(limits.kind.begin(), limits.kind.end()) +
                                        1)),
        here_(limits.most_here.size() * kinds_) {
    for (std::size_t i = 0; i < node_of.size(); ++i)
      ++here(static_cast<std::size_t>(node_of[i]), i);
  }
  bool may_swap(std::size_t a, std::size_t x, std::size_t b, std::size_t y) {
    return limits_.kind[a] != limits_.kind[b] && here(y, a) < limits_.most_here[y] &&
           here(x, b) < limits_.most_here[x];
  }
  void swap(std::size_t a, std::size_t x, std::size_t b, std::size_t y) {
    --here(x, a);
    ++here(y, a);
    --here(y, b);
    ++here(x, b);
  }

 private:
  int& here(std::size_t node, std::size_t item) {
    return here_[node * kinds_ + static_cast<std::size_t>(limits_.kind[item])];
  }

  const SwapLimits& limits_;
  std::size_t kinds_;
  std::vector<int> here_;  // [nodes, kinds]
};

}  // namespace

std::vector<int> search_swaps(const NodeProblem& problem, const std::vector<int>& node_of,
                              const SwapLimits& limits) {
  Division division(problem, node_of);
  const Measure measure(problem, division.costs());
  Kinds kinds(limits, node_of);
  Random random(limits.seed);
  std::vector<int> best = node_of;
  double least = measure.busiest(division.costs());
  constexpr std::int64_t of_each = 32;  // numbers that any proposal looks at
  // Times that the threshold falls: one long fall seldom leaves the valley that it came to first.
  constexpr std::int64_t falls = 4;
  const std::int64_t of_fall = std::max<std::int64_t>(1, limits.work / falls);
  for (std::int64_t work = 0; work < limits.work; work += of_each) {
    const std::size_t a = random.below(problem.num_items());
    const std::size_t b = random.below(problem.num_items());
    const std::size_t x = division.node(a);
    const std::size_t y = division.node(b);
    if (x == y || !kinds.may_swap(a, x, b, y)) continue;
    const Division::Change change = division.change_by(a, b);
    work += change.looked_at;
    const std::vector<std::int64_t>& costs = division.costs();
    const double worse = measure.power(x, costs[x] + change.of_a) - measure.power(x, costs[x]) +
                         measure.power(y, costs[y] + change.of_b) - measure.power(y, costs[y]);
    const double left =
        static_cast<double>(of_fall - work % of_fall) / static_cast<double>(of_fall);
    if (worse > limits.threshold * left * left * left) continue;
    kinds.swap(a, x, b, y);
    work += division.swap(a, b, change);
    const double now = measure.busiest(division.costs());
    if (now >= least) continue;
    least = now;
    best = division.node_of();
  }
  return best;
}

}  // namespace atl
