// The bound by one hot item: the node that has it has others, too.

#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>

#include "app/plan/division_bounds.hpp"

namespace atl {

namespace {

constexpr std::int64_t most_sets = 20000;  // that are looked at before the bounds of the rest count

/// How far costs bend: cost(c + q) >= cost(c) + q (cost(c + 1) - cost(c)) - bend q (q - 1) / 2 for
/// all c and q of one token.
double bend_of(const NodeCost& cost) {
  double bend = 0;
  const std::size_t top_k = cost.size() - 1;
  for (std::size_t c = 0; c < top_k; ++c) {
    for (std::size_t q = 2; c + q <= top_k; ++q) {
      const double straight = static_cast<double>(q) * (cost[c + 1] - cost[c]);
      const double pairs = static_cast<double>(q * (q - 1)) / 2;
      bend = std::max(bend, (straight - (cost[c + q] - cost[c])) / pairs);
    }
  }
  return bend;
}

/// Branch and bound over the sets of `capacity` items with one certain item.
class Sets {
 public:
  Sets(const NodeProblem& problem, int capacity, double known)
      : problem_(problem),
        items_(problem.num_items()),
        capacity_(static_cast<std::size_t>(capacity)),
        least_(known),
        here_(problem.choices.num_tokens()),
        more_(items_),
        tokens_of_(items_) {
    for (std::size_t t = 0; t < here_.size(); ++t) {
      for (const std::uint16_t item : problem_.choices.of(t)) {
        tokens_of_[item].push_back(static_cast<std::uint32_t>(t));
        more_[item] += problem_.cost[1];
      }
    }
    bend_sums();
  }

  double least_with(std::size_t item) {
    std::vector<std::size_t> others(items_);
    std::iota(others.begin(), others.end(), 0);
    others.erase(others.begin() + static_cast<std::ptrdiff_t>(item));
    cost_ = more_[item];
    move(item, 1);
    extend(others, capacity_ - 1);
    return least_;
  }

 private:
  /// [items][m]: half the most that an item's bends with m others take away.
  void bend_sums() {
    const double bend = bend_of(problem_.cost);
    std::vector<double> pairs(items_ * items_);
    for (std::size_t t = 0; t < here_.size(); ++t) {
      for (const std::uint16_t a : problem_.choices.of(t)) {
        for (const std::uint16_t b : problem_.choices.of(t)) {
          if (a != b) pairs[a * items_ + b] += bend / 2;
        }
      }
    }
    most_bend_.assign(items_, std::vector<double>(capacity_ + 1));
    for (std::size_t i = 0; i < items_; ++i) {
      const auto row = pairs.begin() + static_cast<std::ptrdiff_t>(i * items_);
      std::sort(row, row + static_cast<std::ptrdiff_t>(items_), std::greater<>());
      for (std::size_t m = 0; m < std::min(capacity_, items_); ++m)
        most_bend_[i][m + 1] = most_bend_[i][m] + pairs[i * items_ + m];
    }
  }

  /// Takes an item in (1) or out (-1): what its tokens' other items would cost more, changes.
  void move(std::size_t item, int by) {
    for (const std::uint32_t t : tokens_of_[item]) {
      const std::size_t before = here_[t];
      here_[t] = static_cast<std::uint8_t>(before + static_cast<std::size_t>(by));
      const int change = step(here_[t]) - step(before);
      for (const std::uint16_t other : problem_.choices.of(t)) more_[other] += change;
    }
  }
  /// What one more item of a token costs that has so many here.
  int step(std::size_t here) const {
    return here + 1 < problem_.cost.size() ? problem_.cost[here + 1] - problem_.cost[here] : 0;
  }

  // Of m more items, the set S costs at least cost(now) + sum over S of (more - bends with the m-1
  // others of S), pairs counted once: the m least of such values, whichever others they are.
  void extend(const std::vector<std::size_t>& candidates, std::size_t m) {
    if (m == 0) {
      least_ = std::min(least_, static_cast<double>(cost_));
      return;
    }
    std::vector<std::pair<double, std::size_t>> values;
    for (const std::size_t item : candidates) {
      values.emplace_back(static_cast<double>(more_[item]) - most_bend_[item][m - 1], item);
    }
    std::sort(values.begin(), values.end());
    for (std::size_t i = 0; i + m <= values.size(); ++i) {
      double bound = static_cast<double>(cost_);
      for (std::size_t j = i; j < i + m; ++j) bound += values[j].first;
      if (bound >= least_) return;  // and so are the next ones
      if (++looked_at_ > most_sets) {
        least_ = bound;
        return;
      }
      std::vector<std::size_t> later;
      for (std::size_t j = i + 1; j < values.size(); ++j) later.push_back(values[j].second);
      const std::size_t item = values[i].second;
      const std::int64_t more = more_[item];
      cost_ += more;
      move(item, 1);
      extend(later, m - 1);
      move(item, -1);
      cost_ -= more;
    }
  }

  const NodeProblem& problem_;
  std::size_t items_, capacity_;
  double least_;
  std::int64_t cost_ = 0;
  std::int64_t looked_at_ = 0;
  std::vector<std::uint8_t> here_;  // [tokens]: of the set
  std::vector<std::int64_t> more_;  // [items]: that an item not in the set would cost
  std::vector<std::vector<std::uint32_t>> tokens_of_;
  std::vector<std::vector<double>> most_bend_;
};

/// How far costs bend at most below `first` + `slope` j, j more items of a token from `here` on:
/// cost(here + j) >= first + slope j - bend j (j - 1) / 2 for all j up to `most`.
double bend_below(const NodeCost& cost, std::size_t here, double slope, std::size_t most) {
  double bend = 0;
  const double first = here == 0 ? 0 : cost[here];
  for (std::size_t j = 2; j <= most && here + j < cost.size(); ++j) {
    const double pairs = static_cast<double>(j * (j - 1)) / 2;
    bend = std::max(bend, (first + slope * static_cast<double>(j) - cost[here + j]) / pairs);
  }
  return bend;
}

/// What tokens have in common with one item.
struct Beside {
  double tokens = 0;                  // of the item
  std::vector<double> with, without;  // [items]: tokens of another item that have it, or not
  std::vector<double> pairs_with, pairs_without;  // [items, items]: of two other items
};

Beside beside(const NodeProblem& problem, std::size_t item) {
  const std::size_t items = problem.num_items();
  Beside found{0, std::vector<double>(items), std::vector<double>(items),
               std::vector<double>(items * items), std::vector<double>(items * items)};
  for (std::size_t t = 0; t < problem.choices.num_tokens(); ++t) {
    const auto token = problem.choices.of(t);
    const bool has = std::find(token.begin(), token.end(), item) != token.end();
    if (has) ++found.tokens;
    for (const std::uint16_t a : token) {
      if (a == item) continue;
      ++(has ? found.with : found.without)[a];
      for (const std::uint16_t b : token) {
        if (b != a && b != item) ++(has ? found.pairs_with : found.pairs_without)[a * items + b];
      }
    }
  }
  return found;
}

/// Sum of the `count` first values by `order`.
template <class Order>
double sum_of(std::vector<double>& values, std::size_t count, const Order& order) {
  count = std::min(count, values.size());
  const auto end = values.begin() + static_cast<std::ptrdiff_t>(count);
  if (end != values.end()) std::nth_element(values.begin(), end, values.end(), order);
  return std::accumulate(values.begin(), end, 0.0);
}

// Tokens without the item that have j of the set cost at least slope j - bend j(j-1)/2; those with
// it, that have j others, cost(1) + slope' j - bend' j(j-1)/2. Summed over tokens: cost(1) times
// the item's, for each other item of the set its tokens times the slopes, less the bends times the
// pairs, half of them to each of two. The others that take most from an item are not known: the
// most; nor is the set: the least. Any slopes will do.
double bound_by_slopes(const NodeProblem& problem, const Beside& near, std::size_t item,
                       std::size_t others, double slope, double slope_with) {
  const std::size_t items = problem.num_items();
  const double bend = bend_below(problem.cost, 0, slope, others);
  const double bend_with = bend_below(problem.cost, 1, slope_with, others);
  std::vector<double> values;
  std::vector<double> taken(items);
  for (std::size_t a = 0; a < items; ++a) {
    if (a == item) continue;
    for (std::size_t b = 0; b < items; ++b) {
      taken[b] =
          bend * near.pairs_without[a * items + b] + bend_with * near.pairs_with[a * items + b];
    }
    const double most = others == 0 ? 0 : sum_of(taken, others - 1, std::greater<>());
    values.push_back(slope * near.without[a] + slope_with * near.with[a] - most / 2);
  }
  return problem.cost[1] * near.tokens + sum_of(values, others, std::less<>());
}

double bound_by_slopes(const NodeProblem& problem, std::size_t item, int capacity) {
  const Beside near = beside(problem, item);
  const auto others = static_cast<std::size_t>(capacity - 1);
  const double most_with =
      problem.cost.size() > 2 ? problem.cost[2] - problem.cost[1] : 0;  // slopes beyond fail at 1
  double best = 0;
  constexpr int parts = 8;
  for (int i = 0; i <= parts; ++i) {
    for (int j = 0; j <= parts; j += 2) {
      best = std::max(best, bound_by_slopes(problem, near, item, others,
                                            static_cast<double>(problem.cost[1]) * i / parts,
                                            most_with * j / parts));
    }
  }
  return best;
}

}  // namespace

double least_cost_with(const NodeProblem& problem, std::size_t item, int capacity, double known) {
  const double bound = bound_by_slopes(problem, item, capacity);
  if (bound >= known) return known;
  // Only with two items a token costs bend by pairs alone, and looking into sets is worth it.
  return problem.choices.top_k > 2 ? bound : Sets(problem, capacity, known).least_with(item);
}

}  // namespace atl
