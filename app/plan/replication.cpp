#include "app/plan/replication.hpp"

#include <algorithm>
#include <numeric>
#include <optional>

#include "app/plan/seats.hpp"

namespace atl {

namespace {

constexpr std::int32_t nobody = -1;
/// A swap of two replicas is worth its bytes from here on.
constexpr double least_gain = 0.02;

std::vector<int> replicas_of(const ExpertsOfRanks& experts_of, std::size_t num_experts) {
  std::vector<int> replicas(num_experts);
  for (const auto& experts : experts_of) {
    for (const std::int32_t expert : experts) ++replicas[static_cast<std::size_t>(expert)];
  }
  return replicas;
}

/// Ranks' experts while they are being given out.
class Ranks {
 public:
  Ranks(std::span<const std::int64_t> rows, const std::vector<int>& replicas,
        const ExpertsOfRanks& now)
      : rows_(rows), replicas_(replicas), experts_of_(now), load_(now.size()) {}

  const ExpertsOfRanks& experts() const { return experts_of_; }
  double each(std::int32_t expert) const {
    const auto e = static_cast<std::size_t>(expert);
    return static_cast<double>(rows_[e]) / replicas_[e];
  }
  bool has(std::size_t rank, std::int32_t expert) const {
    const auto& experts = experts_of_[rank];
    return std::find(experts.begin(), experts.end(), expert) != experts.end();
  }

  /// Leaves no expert more replicas than it is to have: the busiest ranks give theirs up.
  void give_up() {
    std::vector<int> have = replicas_of(experts_of_, rows_.size());
    count_loads();
    std::vector<std::size_t> order(experts_of_.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return load_[a] > load_[b]; });
    for (const std::size_t rank : order) {
      for (std::int32_t& expert : experts_of_[rank]) {
        const auto e = static_cast<std::size_t>(expert);
        if (have[e] <= replicas_[e]) continue;
        --have[e];
        expert = nobody;
      }
    }
    count_loads();
  }

  /// Fills the places that are free with what is missing. False where one has none.
  bool fill() {
    std::vector<std::int32_t> missing;
    ExpertsOfRanks held = experts_of_;
    for (auto& experts : held) std::erase(experts, nobody);
    const std::vector<int> have = replicas_of(held, rows_.size());
    for (std::size_t e = 0; e < rows_.size(); ++e) {
      missing.insert(missing.end(), static_cast<std::size_t>(replicas_[e] - have[e]),
                     static_cast<std::int32_t>(e));
    }
    std::stable_sort(missing.begin(), missing.end(),
                     [&](std::int32_t a, std::int32_t b) { return each(a) > each(b); });
    for (const std::int32_t expert : missing) {
      std::optional<std::size_t> least;
      for (std::size_t rank = 0; rank < experts_of_.size(); ++rank) {
        if (!has(rank, nobody) || has(rank, expert)) continue;
        if (!least || load_[rank] < load_[*least]) least = rank;
      }
      if (!least) {
        if (!make_room(expert)) return false;
        continue;
      }
      *std::find(experts_of_[*least].begin(), experts_of_[*least].end(), nobody) = expert;
      load_[*least] += each(expert);
    }
    return true;
  }

  /// Swaps replicas of the busiest rank with others' while that makes it less busy.
  void swap_while_better() {
    const std::size_t most_swaps = 4 * experts_of_.size();
    for (std::size_t swaps = 0; swaps < most_swaps; ++swaps) {
      const auto busiest =
          static_cast<std::size_t>(std::max_element(load_.begin(), load_.end()) - load_.begin());
      if (!swap_best(busiest)) return;
    }
  }

 private:
  void count_loads() {
    for (std::size_t rank = 0; rank < load_.size(); ++rank) {
      load_[rank] = 0;
      for (const std::int32_t expert : experts_of_[rank]) {
        if (expert != nobody) load_[rank] += each(expert);
      }
    }
  }

  /// Where all ranks with a free place have the expert already: another goes there from a rank that
  /// has not, the lightest that can, and makes room.
  bool make_room(std::int32_t expert) {
    std::int32_t* from = nullptr;
    std::size_t from_rank = 0, free_rank = 0;
    for (std::size_t free = 0; free < experts_of_.size(); ++free) {
      if (!has(free, nobody)) continue;
      for (std::size_t rank = 0; rank < experts_of_.size(); ++rank) {
        if (has(rank, expert)) continue;
        for (std::int32_t& other : experts_of_[rank]) {
          if (other == nobody || has(free, other)) continue;
          if (from != nullptr && each(other) >= each(*from)) continue;
          from = &other;
          from_rank = rank;
          free_rank = free;
        }
      }
    }
    if (from == nullptr) return false;
    auto& there = experts_of_[free_rank];
    *std::find(there.begin(), there.end(), nobody) = *from;
    load_[free_rank] += each(*from);
    load_[from_rank] += each(expert) - each(*from);
    *from = expert;
    return true;
  }

  bool swap_best(std::size_t busiest) {
    double best = load_[busiest] * (1 - least_gain);
    std::int32_t* mine = nullptr;
    std::int32_t* theirs = nullptr;
    std::size_t other = 0;
    for (std::int32_t& own : experts_of_[busiest]) {
      for (std::size_t rank = 0; rank < experts_of_.size(); ++rank) {
        if (rank == busiest || has(rank, own)) continue;
        for (std::int32_t& expert : experts_of_[rank]) {
          const double less = each(own) - each(expert);
          const double then = std::max(load_[busiest] - less, load_[rank] + less);
          if (then >= best || has(busiest, expert)) continue;
          best = then;
          mine = &own;
          theirs = &expert;
          other = rank;
        }
      }
    }
    if (mine == nullptr) return false;
    const double less = each(*mine) - each(*theirs);
    load_[busiest] -= less;
    load_[other] += less;
    std::swap(*mine, *theirs);
    return true;
  }

  std::span<const std::int64_t> rows_;
  const std::vector<int>& replicas_;
  ExpertsOfRanks experts_of_;
  std::vector<double> load_;  // [ranks]
};

/// The same experts with those that a rank had before at their local numbers.
ExpertsOfRanks in_place(const ExpertsOfRanks& now, ExpertsOfRanks next) {
  for (std::size_t rank = 0; rank < now.size(); ++rank) {
    std::vector<std::int32_t> come = next[rank];
    next[rank] = now[rank];
    for (std::int32_t& expert : next[rank]) {
      const auto stays = std::find(come.begin(), come.end(), expert);
      if (stays == come.end()) {
        expert = nobody;
      } else {
        come.erase(stays);
      }
    }
    for (const std::int32_t expert : come) {
      *std::find(next[rank].begin(), next[rank].end(), nobody) = expert;
    }
  }
  return next;
}

/// [experts]: how many replicas each gets in the places that there are.
std::vector<int> replicas_for(std::span<const std::int64_t> rows,
                              const ExpertsOfRanks& experts_of) {
  int places = 0;
  for (const auto& experts : experts_of) places += static_cast<int>(experts.size());
  return replicas_by_load({rows.begin(), rows.end()}, places, static_cast<int>(experts_of.size()));
}

}  // namespace

double busiest_rows(std::span<const std::int64_t> rows, const ExpertsOfRanks& experts_of) {
  const std::vector<int> replicas = replicas_of(experts_of, rows.size());
  double most = 0;
  for (const auto& experts : experts_of) {
    double sum = 0;
    for (const std::int32_t expert : experts) {
      const auto e = static_cast<std::size_t>(expert);
      sum += static_cast<double>(rows[e]) / replicas[e];
    }
    most = std::max(most, sum);
  }
  return most;
}

double least_busiest_rows(std::span<const std::int64_t> rows, const ExpertsOfRanks& experts_of) {
  const std::vector<int> replicas = replicas_for(rows, experts_of);
  double most = static_cast<double>(std::accumulate(rows.begin(), rows.end(), std::int64_t{0})) /
                static_cast<double>(experts_of.size());
  for (std::size_t e = 0; e < rows.size(); ++e) {
    most = std::max(most, static_cast<double>(rows[e]) / replicas[e]);
  }
  return most;
}

ExpertsOfRanks replicated(std::span<const std::int64_t> rows, const ExpertsOfRanks& now) {
  if (std::all_of(rows.begin(), rows.end(), [](std::int64_t r) { return r == 0; })) return now;
  const std::vector<int> replicas = replicas_for(rows, now);
  Ranks ranks(rows, replicas, now);
  ranks.give_up();
  if (!ranks.fill()) return now;
  ranks.swap_while_better();
  return in_place(now, ranks.experts());
}

std::vector<ExpertMove> moves_between(const ExpertsOfRanks& now, const ExpertsOfRanks& next) {
  std::vector<ExpertMove> moves;
  std::vector<int> sent(now.size());
  for (std::size_t to = 0; to < next.size(); ++to) {
    for (std::size_t local = 0; local < next[to].size(); ++local) {
      const std::int32_t expert = next[to][local];
      if (now[to][local] == expert) continue;
      std::optional<std::size_t> from;
      for (std::size_t rank = 0; rank < now.size(); ++rank) {
        const bool has = std::find(now[rank].begin(), now[rank].end(), expert) != now[rank].end();
        if (has && (!from || sent[rank] < sent[*from])) from = rank;
      }
      ++sent[*from];
      moves.push_back({static_cast<int>(*from), static_cast<int>(to), expert,
                       static_cast<std::int32_t>(local)});
    }
  }
  return moves;
}

}  // namespace atl
