#include "app/plan/slow_shares.hpp"

#include <algorithm>
#include <cmath>

#include "compute/expert_places.hpp"

namespace atl {

namespace {

constexpr std::int32_t whole = compute::ReplicaPlace::whole_share;
/// To see whether a rank that got nothing is still slow.
constexpr std::int32_t trial = whole / 8;

}  // namespace

SlowShares::SlowShares(int num_ranks, double none_from)
    : none_from_(none_from),
      shares_(static_cast<std::size_t>(num_ranks), whole),
      since_(static_cast<std::size_t>(num_ranks)) {}

/// With it the rank takes as long as others do for whole shares.
std::int32_t SlowShares::share_for(double times) const {
  if (times >= none_from_) return 0;
  return std::max(1, static_cast<std::int32_t>(std::lround(whole / times)));
}

bool SlowShares::look(const LoadWatch& loads) {
  const std::int64_t passes = loads.passes();
  if (passes < looked_at_ + looked_every) return false;
  looked_at_ = passes;
  const std::vector<std::int32_t> before = shares_;
  for (const SlowRank& each : loads.slow_ranks()) {
    const auto rank = static_cast<std::size_t>(each.rank);
    if (shares_[rank] == 0) continue;  // its time is not that of rows
    shares_[rank] = std::min(shares_[rank], share_for(each.times));
    since_[rank] = passes;
  }
  for (std::size_t rank = 0; rank < shares_.size(); ++rank) {
    if (shares_[rank] == whole || passes < since_[rank] + trusted_after) continue;
    shares_[rank] = shares_[rank] == 0 ? trial : std::min(whole, 2 * shares_[rank]);
    since_[rank] = passes;
  }
  return shares_ != before;
}

}  // namespace atl
