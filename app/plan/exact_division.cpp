#include "app/plan/exact_division.hpp"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>
#include <map>

namespace atl {

namespace {

using Set = std::uint32_t;  // of items, a bit each

constexpr double never = std::numeric_limits<double>::infinity();

int size_of(Set set) {
  return std::popcount(set);
}

/// [sets]: what all tokens together cost a node that has the set.
std::vector<std::int64_t> costs_of_sets(const NodeProblem& problem) {
  std::map<Set, std::int64_t> tokens;  // that chose exactly these
  for (std::size_t t = 0; t < problem.choices.num_tokens(); ++t) {
    Set chosen = 0;
    for (const std::uint16_t item : problem.choices.of(t)) chosen |= Set{1} << item;
    ++tokens[chosen];
  }
  std::vector<std::int64_t> costs(std::size_t{1} << problem.num_items());
  for (const auto& [chosen, count] : tokens) {
    for (Set set = 0; set < costs.size(); ++set) {
      costs[set] += count * problem.cost[static_cast<std::size_t>(size_of(set & chosen))];
    }
  }
  return costs;
}

class Table {
 public:
  explicit Table(const NodeProblem& problem)
      : problem_(problem),
        costs_(costs_of_sets(problem)),
        best_(costs_.size(), never),
        taken_(problem.num_nodes(), std::vector<Set>(costs_.size())) {
    best_[0] = 0;
    for (const int capacity : problem.capacity) room_after_ += capacity;
    for (std::size_t n = 0; n < problem.num_nodes(); ++n) add_node(n);
  }

  std::vector<int> division() const {
    std::vector<int> node_of(problem_.num_items());
    Set left = static_cast<Set>(costs_.size() - 1);
    for (std::size_t n = problem_.num_nodes(); n-- > 0;) {
      const Set taken = taken_[n][left];
      for (std::size_t i = 0; i < node_of.size(); ++i) {
        if ((taken >> i & 1) != 0) node_of[i] = static_cast<int>(n);
      }
      left &= ~taken;
    }
    return node_of;
  }

 private:
  void add_node(std::size_t n) {
    const int capacity = problem_.capacity[n];
    room_before_ += capacity;
    room_after_ -= capacity;
    small_.clear();
    for (Set set = 0; set < costs_.size(); ++set) {
      if (size_of(set) <= capacity) small_.push_back(set);
    }
    std::vector<double> next(costs_.size(), never);
    const auto items = static_cast<int>(problem_.num_items());
    for (Set set = 0; set < costs_.size(); ++set) {
      if (size_of(set) > room_before_ || items - size_of(set) > room_after_) continue;
      if (std::size_t{1} << size_of(set) < small_.size()) {
        for (Set part = set;; part = (part - 1) & set) {
          if (size_of(part) <= capacity) consider(n, set, part, next);
          if (part == 0) break;
        }
      } else {
        for (const Set part : small_) {
          if ((part & ~set) == 0) consider(n, set, part, next);
        }
      }
    }
    best_ = std::move(next);
  }

  void consider(std::size_t n, Set set, Set part, std::vector<double>& next) {
    const double busiest =
        std::max(best_[set & ~part], static_cast<double>(costs_[part]) * problem_.share[n]);
    if (busiest >= next[set]) return;
    next[set] = busiest;
    taken_[n][set] = part;
  }

  const NodeProblem& problem_;
  std::vector<std::int64_t> costs_;
  std::vector<double> best_;             // [sets], of the nodes so far
  std::vector<std::vector<Set>> taken_;  // [nodes][sets]
  std::vector<Set> small_;               // that fit on the node
  int room_before_ = 0;                  // on the nodes so far
  int room_after_ = 0;
};

}  // namespace

std::optional<std::vector<int>> divide_exactly(const NodeProblem& problem) {
  if (problem.num_items() > most_items_exactly) return std::nullopt;
  return Table(problem).division();
}

}  // namespace atl
