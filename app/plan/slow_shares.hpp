#pragma once
// Which part of its rows a slow rank keeps, where other ranks have replicas of its experts.

#include <cstdint>
#include <span>
#include <vector>

#include "app/plan/load_watch.hpp"

namespace atl {

/// Alike on all ranks, as they see the same loads.
class SlowShares {
 public:
  /// A rank that takes `none_from` times as long as others gets nothing.
  SlowShares(int num_ranks, double none_from);

  /// Passes between two looks, and from a change until its effect is to be seen.
  static constexpr std::int64_t looked_every = 16;
  /// After so many passes in which it was not slow a rank gets more again: those that got nothing
  /// a little, the others twice as much.
  static constexpr std::int64_t trusted_after = 128;

  /// True where a share changed.
  bool look(const LoadWatch& loads);

  /// [ranks], of compute::ReplicaPlace::whole_share.
  std::span<const std::int32_t> shares() const { return shares_; }

 private:
  std::int32_t share_for(double times) const;

  const double none_from_;
  std::vector<std::int32_t> shares_;
  std::vector<std::int64_t> since_;  // [ranks]: passes when the share changed, or it was slow last
  std::int64_t looked_at_ = 0;
};

}  // namespace atl
