#include "app/plan/load_watch.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

namespace atl {

namespace {

/// A pass's weight in the averages; those of the last 32 passes make up two thirds.
constexpr double weight_of_pass = 1.0 / 32;
/// Rows that differ by less than this part of the mean say nothing about the time of a row.
constexpr double least_difference = 0.1;
/// Passes: with hundreds of ranks looking takes some milliseconds.
constexpr std::int64_t looked_every = 16;
/// Times the most rows: so far the line is believed.
constexpr double far = 8;
/// Below, times are those of clocks and of launching.
constexpr double least_seconds = 20e-6;

double median(std::vector<double>& values) {
  const auto middle = values.begin() + std::ssize(values) / 2;
  std::nth_element(values.begin(), middle, values.end());
  if (values.size() % 2 == 1) return *middle;
  return (*middle + *std::max_element(values.begin(), middle)) / 2;
}

}  // namespace

std::vector<HotExpert> hot_experts(std::span<const std::int64_t> tokens, int num_experts,
                                   std::size_t most) {
  constexpr double hot_from = 1.5;
  std::vector<HotExpert> hot;
  const auto experts = static_cast<std::size_t>(num_experts);
  for (std::size_t first = 0; first + experts <= tokens.size(); first += experts) {
    const auto layer = tokens.subspan(first, experts);
    const double mean =
        static_cast<double>(std::accumulate(layer.begin(), layer.end(), std::int64_t{0})) /
        static_cast<double>(num_experts);
    for (std::size_t expert = 0; expert < experts; ++expert) {
      const auto own = static_cast<double>(layer[expert]);
      if (own == 0 || own < hot_from * mean) continue;
      hot.push_back(
          {static_cast<int>(first / experts), static_cast<int>(expert), layer[expert], own / mean});
    }
  }
  const auto end = hot.begin() + std::min(std::ssize(hot), static_cast<std::ptrdiff_t>(most));
  std::partial_sort(hot.begin(), end, hot.end(), [](const HotExpert& a, const HotExpert& b) {
    return a.over_mean > b.over_mean;
  });
  hot.erase(end, hot.end());
  return hot;
}

LoadWatch::LoadWatch(std::vector<int> group_of_rank, std::vector<int> node_of_rank)
    : group_of_(std::move(group_of_rank)),
      node_of_(std::move(node_of_rank)),
      averages_(group_of_.size()),
      slow_passes_(group_of_.size()) {
  for (std::size_t rank = 0; rank < group_of_.size(); ++rank) {
    const auto group = static_cast<std::size_t>(group_of_[rank]);
    if (groups_.size() <= group) groups_.resize(group + 1);
    groups_[group].push_back(static_cast<int>(rank));
  }
}

void LoadWatch::add(std::span<const RankWork> of_pass) {
  if (std::none_of(of_pass.begin(), of_pass.end(), [](const RankWork& w) { return w.rows > 0; }))
    return;
  ++passes_;
  // A plain mean until there are as many passes as the average goes back.
  const double weight = std::max(weight_of_pass, 1.0 / static_cast<double>(passes_));
  for (std::size_t rank = 0; rank < averages_.size(); ++rank) {
    Average& average = averages_[rank];
    const RankWork& work = of_pass[rank];
    average.rows += weight * (static_cast<double>(work.rows) - average.rows);
    average.seconds += weight * (work.seconds - average.seconds);
    average.bytes += weight * (static_cast<double>(work.bytes_between_nodes) - average.bytes);
  }
  if (passes_ % looked_every != 0) return;
  for (const SlowRank& slow : slow_ranks()) {
    slow_passes_[static_cast<std::size_t>(slow.rank)] += looked_every;
  }
}

LoadWatch::Busiest LoadWatch::busiest_rank() const {
  Busiest busiest;
  for (const std::vector<int>& group : groups_) {
    double sum = 0;
    for (const int rank : group) sum += averages_[static_cast<std::size_t>(rank)].rows;
    for (const int rank : group) {
      const double rows = averages_[static_cast<std::size_t>(rank)].rows;
      const double over_mean = sum > 0 ? rows * static_cast<double>(group.size()) / sum : 1;
      if (over_mean > busiest.over_mean) busiest = {rank, over_mean};
    }
  }
  return busiest;
}

LoadWatch::Busiest LoadWatch::busiest_node() const {
  std::vector<double> bytes;
  for (std::size_t rank = 0; rank < averages_.size(); ++rank) {
    const auto node = static_cast<std::size_t>(node_of_[rank]);
    bytes.resize(std::max(bytes.size(), node + 1));
    bytes[node] += averages_[rank].bytes;
  }
  double sum = 0;
  for (const double each : bytes) sum += each;
  const auto most = std::max_element(bytes.begin(), bytes.end());
  if (sum <= 0) return {};
  return {static_cast<int>(most - bytes.begin()), *most * static_cast<double>(bytes.size()) / sum};
}

std::vector<LoadWatch::Average> LoadWatch::others_of(const std::vector<int>& group,
                                                     int rank) const {
  std::vector<Average> others;
  for (const int other : group) {
    if (other != rank) others.push_back(averages_[static_cast<std::size_t>(other)]);
  }
  return others;
}

/// A line through times, neither of whose numbers is negative: slope and height are medians (as
/// Theil and Sen do it), which one slow rank of several does not move.
LoadWatch::Line LoadWatch::line_through(std::span<const Average> ranks) {
  Line line;
  double mean = 0;
  for (const Average& rank : ranks) {
    mean += rank.rows / static_cast<double>(ranks.size());
    line.most_rows = std::max(line.most_rows, rank.rows);
  }
  std::vector<double> numbers;
  for (std::size_t a = 0; a < ranks.size(); ++a) {
    for (std::size_t b = 0; b < a; ++b) {
      const double rows = ranks[a].rows - ranks[b].rows;
      if (std::abs(rows) <= least_difference * mean) continue;
      numbers.push_back((ranks[a].seconds - ranks[b].seconds) / rows);
    }
  }
  if (!numbers.empty()) {
    line.slope = std::max(0.0, median(numbers));
    line.known_to = far * line.most_rows;
  } else {
    line.known_to = line.most_rows;
  }
  numbers.clear();
  for (const Average& rank : ranks) {
    if (rank.rows > 0) numbers.push_back(rank.seconds / rank.rows);
  }
  line.per_row = numbers.empty() ? 0 : median(numbers);
  numbers.clear();
  for (const Average& rank : ranks) numbers.push_back(rank.seconds - line.slope * rank.rows);
  line.height = median(numbers);
  if (line.height < 0) line = {line.per_row, 0, line.per_row, line.most_rows, line.known_to};
  return line;
}

/// With many more rows than any of the others have, the line is little to go by: n times as many
/// may take n times as long. Nothing is known where the others have none.
double LoadWatch::Line::seconds_for(double rows) const {
  const double on_line = std::max(least_seconds, height + slope * rows);
  if (rows <= known_to) return on_line;
  if (most_rows <= 0) return std::numeric_limits<double>::infinity();
  return std::max(on_line, per_row * rows);
}

std::vector<SlowRank> LoadWatch::slow_ranks() const {
  std::vector<SlowRank> slow;
  if (passes_ < least_passes) return slow;
  for (const std::vector<int>& group : groups_) {
    if (group.size() < 3) continue;
    // Of many ranks one does not move a median; of a few it would.
    const bool few = group.size() <= 8;
    Line line;
    if (!few) line = line_through(others_of(group, -1));
    for (const int rank : group) {
      const Average& own = averages_[static_cast<std::size_t>(rank)];
      if (few) line = line_through(others_of(group, rank));
      const double expected = line.seconds_for(own.rows);
      if (own.seconds > slow_from * expected) slow.push_back({rank, own.seconds / expected});
    }
  }
  std::sort(slow.begin(), slow.end(),
            [](const SlowRank& a, const SlowRank& b) { return a.times > b.times; });
  return slow;
}

}  // namespace atl
