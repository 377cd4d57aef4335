#pragma once
// One chunk's rows between nodes: each goes to a node once, along the same place on each of them.

#include <vector>

#include "app/plan/across_rows.hpp"
#include "app/run/chunk_moves.hpp"
#include "comm/lane.hpp"
#include "compute/across_rows.hpp"
#include "compute/backend.hpp"

namespace atl {

class AcrossExchange {
 public:
  /// Collective over the rail.
  AcrossExchange(const RowsSetup& setup, compute::Chunk& chunk);

  /// Tells the receivers of other nodes what comes, after route; few rows go along.
  void tell(int layer);
  /// Once it is true, there is room for what will arrive and be forwarded.
  bool told();
  void dispatch();
  void combine();
  bool moved(StepKind kind) const;
  /// As ChunkMoves::placed().
  void placed(int layer);

  /// Of the layer under way: what this rank forwards inside its node.
  const AcrossRows& rows() const { return *told_; }
  comm::Lane& lane(StepKind kind) { return kind == StepKind::across_combine ? back_ : there_; }
  const comm::Lane& lane(StepKind kind) const {
    return kind == StepKind::across_combine ? back_ : there_;
  }
  /// Members' ranks in the job.
  const std::vector<int>& world_ranks() const { return world_ranks_; }
  std::size_t most_requests() const { return there_.most_requests() + back_.most_requests(); }

 private:
  AcrossRows& rows_of(int layer);

  RowsSetup setup_;
  compute::Chunk& chunk_;
  const std::vector<int> world_ranks_;
  std::vector<AcrossRows> rows_;  // [kinds of the placement]
  AcrossRows* told_ = nullptr;    // of the layer under way
  std::size_t row_bytes_;         // with tails
  comm::Lane there_, back_;
  comm::RowMove move_;
};

}  // namespace atl
