#pragma once
// One chunk's rows between ranks that share experts: what came to any of them goes to all, then
// their inner columns, and the columns of the results back.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "app/run/chunk_moves.hpp"
#include "comm/lane.hpp"
#include "comm/row_move.hpp"
#include "compute/backend.hpp"

namespace atl {

class HolderExchange {
 public:
  /// Collective over the holder's ranks.
  HolderExchange(const RowsSetup& setup, compute::Chunk& chunk);

  /// Tells the others how many rows of each expert came to this rank: those of `blocks`.
  void tell(std::span<const compute::RowBlock> blocks);
  /// Once it is true, the chunk has room for all rows.
  bool told();
  /// StepKind::held_rows, inner_rows or held_results.
  void post(StepKind kind);
  /// All members' rows, expert by expert. Valid until the next tell().
  std::span<const compute::RowBlock> blocks() const { return blocks_; }

  comm::Lane& lane(StepKind kind) { return *lanes_[lane_of(kind)]; }
  const comm::Lane& lane(StepKind kind) const { return *lanes_[lane_of(kind)]; }
  const std::vector<int>& world_ranks() const { return world_ranks_; }
  std::size_t most_requests() const;

 private:
  static std::size_t lane_of(StepKind kind);
  std::int32_t& count(std::size_t member, std::size_t expert) {
    return counts_[member * num_experts_ + expert];
  }
  void list_blocks();

  RowsSetup setup_;
  compute::Chunk& chunk_;
  const std::vector<int> world_ranks_;
  int place_;
  std::size_t num_experts_;              // of a layer on this rank, at most
  std::vector<std::int32_t> counts_;     // [members, experts]: rows
  std::vector<std::int64_t> first_row_;  // [members + 1], among all rows
  std::vector<std::int64_t> next_row_;   // [members], while blocks are listed
  std::vector<compute::RowBlock> blocks_;
  std::vector<std::unique_ptr<comm::Lane>> lanes_;  // of each kind of exchange
  std::vector<std::size_t> row_bytes_;              // [lanes]
  comm::RowMove move_;
};

}  // namespace atl
