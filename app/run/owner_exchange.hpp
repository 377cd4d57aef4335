#pragma once
// One chunk's rows between the ranks that share attention: to all of them, and back as heads.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "app/run/chunk_moves.hpp"
#include "comm/lane.hpp"
#include "comm/row_move.hpp"
#include "compute/backend.hpp"

namespace atl {

class OwnerExchange {
 public:
  /// Collective over the owner's ranks.
  OwnerExchange(const RowsSetup& setup, compute::Chunk& chunk);

  void post(StepKind kind);
  comm::Lane& lane(StepKind kind) { return *lanes_[lane_of(kind)]; }
  const comm::Lane& lane(StepKind kind) const { return *lanes_[lane_of(kind)]; }
  const std::vector<int>& world_ranks() const { return world_ranks_; }
  std::size_t most_requests() const;

 private:
  static std::size_t lane_of(StepKind kind);

  RowsSetup setup_;
  compute::Chunk& chunk_;
  const std::vector<int> world_ranks_;
  int place_;
  std::vector<std::int64_t> first_row_;             // [members + 1], of the chunk under way
  std::vector<std::unique_ptr<comm::Lane>> lanes_;  // of each kind of exchange
  std::vector<std::size_t> row_bytes_;              // [lanes]
  comm::RowMove move_;
};

}  // namespace atl
