#pragma once
// Experts on their way to other ranks while passes go on: who gets which is decided alike on all
// ranks, weights travel beside the passes, and all ranks change over between the same two.

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <nlohmann/json.hpp>
#include <span>
#include <vector>

#include "app/plan/balance_policy.hpp"
#include "app/plan/rank_load.hpp"
#include "app/run/driver.hpp"
#include "app/run/groups.hpp"
#include "app/run/replica_shares.hpp"
#include "comm/byte_moves.hpp"
#include "compute/aligned_buffer.hpp"
#include "compute/backend.hpp"

namespace atl {

class Rebalancer {
 public:
  /// Collective. All of these outlive it. `bytes_at_once`: of experts that one rank sends or gets
  /// beside one pass, at most, but for one layer's. `written(layer, local expert)` hears of weights
  /// that have come in others' place.
  Rebalancer(const BalanceOptions& options, const Groups& groups, compute::Backend& backend,
             Driver& driver, ReplicaShares& shares, std::int64_t bytes_at_once,
             std::function<void(int, int)> written);

  /// What this rank says to the others before each pass. Drives MPI's progress.
  MoveState state();
  /// Collective, as the ranks have agreed on a pass: what is due by now. `land` returns when no
  /// operation is under way.
  void advance(std::span<const RankLoad> loads, const std::function<void()>& land);
  /// What is on its way still comes; nothing else changes its place.
  void stop() {
    waiting_.clear();
    stopped_ = true;
  }
  /// Collective: what is on its way is forgotten, and the experts stay where they were.
  void drop();
  /// Collective. Nothing is on its way any more; experts whose weights had come by half stay where
  /// they were.
  void finish() { moves_.finish(); }

  nlohmann::json report() const;

 private:
  void look();
  void begin_batch();
  void end_batch();
  /// Whether this rank's stage has the layer.
  bool here(int layer) const { return layer >= layers_.first && layer < layers_.end; }

  /// An expert that this rank gets, with its weights once they have come.
  struct Arrival {
    int layer = 0;
    std::int32_t local = 0;
    compute::AlignedBuffer bytes;
  };

  const BalanceOptions options_;
  const Groups& groups_;
  compute::Backend& backend_;
  Driver& driver_;
  ReplicaShares& shares_;
  const std::function<void(int, int)> written_;
  const std::int64_t bytes_at_once_;
  const int place_;  // in the exchange
  const LayerRange layers_;
  comm::ByteMoves moves_;
  BalanceCosts costs_;

  std::int64_t passes_ = 0, last_look_ = 0;  // passes that have been agreed on
  // [layers]: when each had enough rows last; [layers * experts]: tokens of all ranks until then
  std::vector<std::int64_t> looked_at_, seen_;
  RankWork work_;  // of all ranks, summed up

  bool stopped_ = false;
  std::deque<LayerChange> waiting_;
  std::vector<LayerChange> batch_;  // on their way
  std::vector<Arrival> arrivals_;
  std::vector<compute::AlignedBuffer> sent_;
  std::int64_t batch_bytes_ = 0;  // of the rank with most
  double lost_s_ = 0;             // by this rank, in this batch

  struct Done {
    std::int64_t looks = 0, refused = 0, changes = 0, moves = 0, bytes = 0;
    double seconds = 0, rows_saved = 0;
  } done_;
};

}  // namespace atl
