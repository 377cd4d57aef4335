#pragma once
// When experts change their ranks while a run goes on: where that pays.

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "app/plan/placement.hpp"
#include "app/plan/replication.hpp"

namespace atl {

/// What is done about experts that get more tokens than others.
enum class Balance : std::uint8_t {
  none,
  replicate,  ///< they get replicas, and others lose theirs
  bias,       ///< they get fewer, see GateBias
};
std::string_view name_of(Balance balance);

struct BalanceOptions {
  double above = 1.2;          ///< rows of the busiest rank over the mean, in a layer
  std::int64_t every = 8;      ///< passes between two looks, at least
  std::int64_t pays_in = 256;  ///< passes in which a move has to save what it costs
  double straggler = 4;        ///< times as slow as others: such a rank gets no rows
};

/// One layer's experts in other places.
struct LayerChange {
  int layer = 0;
  ExpertsOfRanks experts_of;
  std::vector<ExpertMove> moves;
  double rows_saved = 0;  ///< of the busiest rank, in a pass
};

/// What moving takes and gives; alike on all ranks.
struct BalanceCosts {
  double seconds_of_row = 0;        ///< of an expert's arithmetic
  double seconds_of_byte = 1e-9;    ///< that passes lose for each byte that one rank sends or gets
  double seconds_of_change = 1e-3;  ///< the same for each change
  std::int64_t expert_bytes = 0;
};

/// Bytes that the rank with most sends and gets.
std::int64_t busiest_bytes(std::span<const ExpertMove> moves, int num_ranks,
                           std::int64_t expert_bytes);

/// Whether so many rows of a layer's experts say what comes next.
bool enough_rows(std::span<const std::int64_t> rows);

/// `rows` [layers * experts]: of `passes` [layers] passes. The changes that are worth making: of
/// layers whose busiest rank has more than options.above of the mean, of which a tenth at least
/// would go, and whose saving in options.pays_in passes exceeds the cost. Those that save most come
/// first. `refused`: how many would not have paid.
std::vector<LayerChange> changes_worth(std::span<const std::int64_t> rows,
                                       std::span<const std::int64_t> passes,
                                       const Placement& placement, const BalanceOptions& options,
                                       const BalanceCosts& costs, std::int64_t& refused);

}  // namespace atl
