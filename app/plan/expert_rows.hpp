#pragma once
// Where the rows of one MoE layer lie and go: from counts to a RowMove and to the experts' blocks.
// The only place that knows; the driver, benchmarks and tests ask it.

#include <cstdint>
#include <span>
#include <vector>

#include "app/plan/placement.hpp"
#include "comm/row_move.hpp"
#include "compute/backend.hpp"

namespace atl {

/// Consecutive rows of one local expert, from one rank.
struct ExpertBlock {
  std::int32_t local_expert = 0;
  std::int32_t num_rows = 0;
  bool own = false;  ///< this rank's, among the packed rows, where they stay; else arrived
  std::int64_t first_row = 0;  ///< among the packed rows, or among those that arrived
};

/// Where the rows of `block` lie in the buffers of `chunk`, and where their results go.
compute::RowBlock row_block(const ExpertBlock& block, const compute::Chunk& chunk,
                            std::size_t row_bytes);

/// Packed rows are grouped by their place in sending order: by the rank of their expert, and there
/// by expert. Rows that arrive are grouped by the rank they come from, and there by expert. After
/// construction nothing allocates.
class ExpertRows {
 public:
  ExpertRows(const Placement& placement, int own_rank);

  int num_ranks() const { return placement_.num_ranks(); }
  /// Takes the counts of this rank's packed rows, [experts] in sending order.
  void packed(std::span<const std::int32_t> counts);
  /// What to tell `rank`: this rank's rows for each of its experts.
  std::span<const std::int32_t> told_to(int rank) const;
  /// Takes what `rank` told: its rows for each of this rank's experts, at least so many numbers.
  void heard_from(int rank, std::span<const std::int32_t> counts);

  /// Rows to each rank and where they lie; known after packed().
  void plan_sends(comm::RowMove& move) const;
  /// Rows from each rank and where they will lie; known after heard_from() each other rank.
  void plan_receives(comm::RowMove& move) const;
  /// The rows of each local expert, expert by expert and there rank by rank, empty ones left out.
  void blocks(std::vector<ExpertBlock>& blocks) const;
  /// blocks() makes so many at most.
  std::size_t most_blocks() const { return heard_.size(); }

 private:
  std::size_t num_local() const;
  std::span<const std::int32_t> counts_of(int rank) const;

  Placement placement_;
  int own_;
  std::vector<std::int32_t> packed_;  // [experts], sending order
  std::vector<std::int32_t> heard_;   // [ranks, local experts]; the own part is told_to(own)
};

}  // namespace atl
