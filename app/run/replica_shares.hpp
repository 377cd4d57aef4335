#pragma once
// Which replicas of experts get rows: fewer those on slow ranks, none those that are broken.

#include <cstdint>
#include <functional>
#include <set>
#include <span>
#include <tuple>

#include "app/plan/load_watch.hpp"
#include "app/plan/slow_shares.hpp"
#include "app/run/driver.hpp"
#include "app/run/groups.hpp"
#include "compute/backend.hpp"

namespace atl {

/// An expert whose weights are no longer what they were, on one rank.
struct BrokenExpert {
  int rank = 0;  ///< of the job
  int layer = 0;
  std::int32_t expert = 0;

  auto operator<=>(const BrokenExpert&) const = default;
};

/// Alike on all ranks, as they hear the same.
class ReplicaShares {
 public:
  /// All of these outlive it. A rank that takes `straggler` times as long as others gets nothing.
  ReplicaShares(const Groups& groups, compute::Backend& backend, Driver& driver, double straggler);

  /// Ranks that are slow for what they have get fewer rows, where others have replicas of their
  /// experts. True where a share changed. `land` returns when no operation is under way.
  bool relieve(const LoadWatch& loads, const std::function<void()>& land);
  /// From now on this one gets no rows. False where no other rank has a sound one to take them.
  bool leave_out(const BrokenExpert& broken, const std::function<void()>& land);

  /// The backend routes by how the driver places a layer's experts now, and by shares.
  void tell_backend(int layer);

  /// [ranks of the job], of compute::ReplicaPlace::whole_share.
  std::span<const std::int32_t> shares() const { return shares_.shares(); }
  const std::set<BrokenExpert>& broken() const { return broken_; }

 private:
  bool has_layer(int layer) const;

  const Groups& groups_;
  compute::Backend& backend_;
  Driver& driver_;
  SlowShares shares_;
  std::set<BrokenExpert> broken_;
};

}  // namespace atl
