#include "app/plan/balance_policy.hpp"

#include <algorithm>
#include <numeric>

namespace atl {

namespace {

/// Of what the busiest rank has above the mean, or a move back would follow a move.
constexpr double least_part = 0.1;
/// Rows of a layer for each of its experts: fewer say little about what comes next.
constexpr std::int64_t least_rows = 16;

std::int64_t total_of(std::span<const std::int64_t> rows) {
  return std::accumulate(rows.begin(), rows.end(), std::int64_t{0});
}

}  // namespace

std::string_view name_of(Balance balance) {
  switch (balance) {
    case Balance::none:
      return "none";
    case Balance::replicate:
      return "replicate";
    case Balance::bias:
      return "bias";
  }
  return "";
}

std::int64_t busiest_bytes(std::span<const ExpertMove> moves, int num_ranks,
                           std::int64_t expert_bytes) {
  std::vector<std::int64_t> count(static_cast<std::size_t>(num_ranks));
  for (const ExpertMove& move : moves) {
    ++count[static_cast<std::size_t>(move.from)];
    ++count[static_cast<std::size_t>(move.to)];
  }
  return moves.empty() ? 0 : *std::max_element(count.begin(), count.end()) * expert_bytes;
}

bool enough_rows(std::span<const std::int64_t> rows) {
  return total_of(rows) >= least_rows * std::ssize(rows);
}

std::vector<LayerChange> changes_worth(std::span<const std::int64_t> rows,
                                       std::span<const std::int64_t> passes,
                                       const Placement& placement, const BalanceOptions& options,
                                       const BalanceCosts& costs, std::int64_t& refused) {
  std::vector<LayerChange> changes;
  for (std::size_t layer = 0; layer < placement.kind_of_layer.size(); ++layer) {
    if (placement.kind_of_layer[layer] < 0) continue;
    const LayerPlacement& now = placement.of(static_cast<int>(layer));
    const auto experts = static_cast<std::size_t>(now.num_experts());
    const auto of_layer = rows.subspan(layer * experts, experts);
    if (!enough_rows(of_layer)) continue;
    const auto in_passes = static_cast<double>(std::max<std::int64_t>(1, passes[layer]));
    const double mean = static_cast<double>(total_of(of_layer)) / now.num_ranks();
    const double before = busiest_rows(of_layer, now.experts_of_ranks());
    if (before <= options.above * mean) continue;
    LayerChange change;
    change.layer = static_cast<int>(layer);
    change.experts_of = replicated(of_layer, now.experts_of_ranks());
    change.rows_saved = (before - busiest_rows(of_layer, change.experts_of)) / in_passes;
    if (change.rows_saved * in_passes < least_part * (before - mean)) continue;
    change.moves = moves_between(now.experts_of_ranks(), change.experts_of);
    const double cost =
        costs.seconds_of_change +
        costs.seconds_of_byte *
            static_cast<double>(busiest_bytes(change.moves, now.num_ranks(), costs.expert_bytes));
    const double saved =
        change.rows_saved * costs.seconds_of_row * static_cast<double>(options.pays_in);
    if (saved > cost) {
      changes.push_back(std::move(change));
    } else {
      ++refused;
    }
  }
  std::stable_sort(changes.begin(), changes.end(), [](const LayerChange& a, const LayerChange& b) {
    return a.rows_saved > b.rows_saved;
  });
  return changes;
}

}  // namespace atl
