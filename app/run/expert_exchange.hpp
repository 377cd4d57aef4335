#pragma once
// One chunk's rows between those who have them and those who hold the experts, in one group: all
// of an exchange (Route::flat), or those of a node (the second hop of Route::nodes).

#include <cstdint>
#include <span>
#include <vector>

#include "app/plan/expert_rows.hpp"
#include "app/run/chunk_moves.hpp"
#include "comm/lane.hpp"
#include "compute/backend.hpp"

namespace atl {

class ExpertExchange {
 public:
  /// Collective over the group. `counts_go_alone`: rows never go with their counters, since they
  /// are not there yet when the counters go.
  ExpertExchange(const RowsSetup& setup, compute::Chunk& chunk, Share share, bool counts_go_alone);

  /// Tells the others how many rows go to each of their experts; few rows go along. `counts` are
  /// those of the packed rows, one for each place of the group.
  void tell(int layer, std::span<const std::int32_t> counts);
  /// Once it is true, there is room for what will arrive.
  bool told();
  void dispatch();
  void combine();
  bool moved() const { return alone() || lane_.done(); }
  /// The rows of this rank's experts, where they lie. Valid until the next call.
  std::span<const compute::RowBlock> blocks(int layer);
  /// The same again.
  std::span<const compute::RowBlock> same_blocks() const { return blocks_; }

  /// As ChunkMoves::placed().
  void placed(int layer) { rows_of(layer) = rows_for(setup_.placement->of(layer)); }

  comm::Lane& lane() { return lane_; }
  const comm::Lane& lane() const { return lane_; }
  bool alone() const { return world_ranks_.size() == 1; }
  /// Members' ranks in the job.
  const std::vector<int>& world_ranks() const { return world_ranks_; }

 private:
  ExpertRows& rows_of(int layer);
  ExpertRows rows_for(const LayerPlacement& placement) const;

  RowsSetup setup_;
  compute::Chunk& chunk_;
  Share share_;
  const std::vector<int> world_ranks_;
  comm::Lane lane_;
  std::vector<ExpertRows> rows_;  // [kinds of the placement]
  ExpertRows* told_ = nullptr;    // of the layer under way
  comm::RowMove move_;
  std::vector<ExpertBlock> expert_blocks_;
  std::vector<compute::RowBlock> blocks_;
};

/// Adds a move's bytes, of rows of `row_bytes`, to what was sent; `ranks` are the members' in the
/// job.
void count_sent(Traffic& traffic, Share share, const comm::RowMove& move,
                const std::vector<int>& ranks, std::size_t row_bytes);

}  // namespace atl
