#pragma once
// What the head steps of a chunk gave, to all ranks that have its sequences: tokens for the next
// pass, or log-probabilities.

#include <vector>

#include "app/mode.hpp"
#include "app/run/chunk_batch.hpp"
#include "app/run/groups.hpp"
#include "comm/lane.hpp"
#include "comm/row_move.hpp"

namespace atl {

class HeadExchange {
 public:
  /// Collective over Share::sequences.
  HeadExchange(const Groups& groups, Mode mode, comm::TransportKind transport);

  /// The ranks of the last stage have each what its rows gave; once done, all have all.
  void post(ChunkBatch& batch);
  comm::Lane& lane() { return lane_; }
  const comm::Lane& lane() const { return lane_; }
  comm::Awaited awaited() const;  ///< ranks of the job

 private:
  Mode mode_;
  Division division_;
  int place_;
  const std::vector<int> world_ranks_;
  comm::Lane lane_;
  comm::RowMove move_;
};

}  // namespace atl
