#include "app/plan/time_shares.hpp"

#include <algorithm>

namespace atl {

void TimeShares::add(const TimeShares& other) {
  wall += other.wall;
  compute += other.compute;
  exchange += other.exchange;
  overlapped += other.overlapped;
  communication += other.communication;
  synchronisation += other.synchronisation;
  overhead += other.overhead;
}

double TimeShares::overlapped_share() const {
  const double shorter = std::min(compute, exchange);
  return shorter > 0 ? overlapped / shorter : 1.0;
}

void TimeSweep::begin(double from, double to) {
  from_ = from;
  to_ = to;
  edges_.clear();
}

void TimeSweep::add(double from, double to, Busy busy) {
  from = std::max(from, from_);
  if (to <= from) return;
  edges_.push_back({from, static_cast<int>(busy), +1});
  edges_.push_back({to, static_cast<int>(busy), -1});
}

TimeShares TimeSweep::shares() {
  std::sort(edges_.begin(), edges_.end(),
            [](const Edge& a, const Edge& b) { return a.time < b.time; });
  TimeShares sum;
  std::array<int, 3> active{};
  double at = from_;
  const auto spend = [&](double until) {
    const double span = std::max(0.0, until - at);
    if (active[0] > 0) sum.compute += span;
    if (active[1] > 0) sum.exchange += span;
    if (active[0] > 0 && active[1] > 0) sum.overlapped += span;
    if (active[0] == 0) {
      (active[1] > 0   ? sum.communication
       : active[2] > 0 ? sum.synchronisation
                       : sum.overhead) += span;
    }
    at = std::max(at, until);
  };
  for (const Edge& edge : edges_) {
    spend(edge.time);
    active[static_cast<std::size_t>(edge.state)] += edge.change;
  }
  spend(to_);
  sum.wall = to_ - from_;
  return sum;
}

TimeShares TimeSweep::shares_until(double to) {
  to_ = to;
  return shares();
}

}  // namespace atl
