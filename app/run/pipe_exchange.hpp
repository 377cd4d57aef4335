#pragma once
// One chunk's residual stream from stage to stage of a network.

#include <array>
#include <cstddef>
#include <memory>
#include <vector>

#include "app/run/chunk_moves.hpp"
#include "comm/lane.hpp"
#include "comm/row_move.hpp"
#include "compute/backend.hpp"

namespace atl {

class PipeExchange {
 public:
  /// Collective over the pipe.
  PipeExchange(const RowsSetup& setup, compute::Chunk& chunk);

  /// StepKind::receive, or forward.
  void post(StepKind kind);
  comm::Lane& lane(StepKind kind) { return *lanes_[lane_of(kind)]; }
  const comm::Lane& lane(StepKind kind) const { return *lanes_[lane_of(kind)]; }
  const std::vector<int>& world_ranks() const { return world_ranks_; }
  std::size_t most_requests() const {
    return lanes_[0]->most_requests() + lanes_[1]->most_requests();
  }

 private:
  /// What a stage forwards travels on the lane that the next one receives on: those of even stages
  /// on one, those of odd ones on the other.
  std::size_t lane_of(StepKind kind) const {
    return static_cast<std::size_t>(kind == StepKind::forward ? stage_ : stage_ + 1) % 2;
  }

  RowsSetup setup_;
  compute::Chunk& chunk_;
  const std::vector<int> world_ranks_;
  int stage_;
  std::size_t row_bytes_;  // of x, in float32
  std::array<std::unique_ptr<comm::Lane>, 2> lanes_;
  comm::RowMove move_;
};

}  // namespace atl
