#include "app/run/replica_shares.hpp"

#include <algorithm>
#include <vector>

namespace atl {

ReplicaShares::ReplicaShares(const Groups& groups, compute::Backend& backend, Driver& driver,
                             double straggler)
    : groups_(groups),
      backend_(backend),
      driver_(driver),
      shares_(groups.world().size(), straggler) {}

/// This rank's stage has it, and it has experts.
bool ReplicaShares::has_layer(int layer) const {
  const auto& kinds = driver_.placement().kind_of_layer;
  const JobLayout& job = groups_.job();
  const LayerRange own = layers_of_stage(static_cast<int>(kinds.size()),
                                         job.stage_of(groups_.world().rank()), job.division().pp);
  return layer >= own.first && layer < own.end && kinds[static_cast<std::size_t>(layer)] >= 0;
}

void ReplicaShares::tell_backend(int layer) {
  const LayerPlacement& placement = driver_.placement().of(layer);
  const auto& members = groups_.job().of(Share::exchange).group_with(groups_.world().rank());
  std::vector<std::int32_t> shares;
  for (const int rank : members) {
    shares.push_back(shares_.shares()[static_cast<std::size_t>(rank)]);
  }
  const int place = groups_.of(Share::exchange).rank();
  compute::ExpertPlaces seen = placement.places_seen_by(place, groups_.layout(), shares);
  for (const BrokenExpert& each : broken_) {
    if (each.layer != layer) continue;
    const auto& ranks = placement.ranks_of_expert()[static_cast<std::size_t>(each.expert)];
    for (std::size_t i = 0; i < ranks.size(); ++i) {
      if (members[static_cast<std::size_t>(ranks[i])] != each.rank) continue;
      const auto first = seen.first_of_expert[static_cast<std::size_t>(each.expert)];
      seen.replicas[static_cast<std::size_t>(first) + i].share = compute::ReplicaPlace::broken;
    }
  }
  backend_.place_experts(layer, placement.experts_of(place), seen);
}

bool ReplicaShares::relieve(const LoadWatch& loads, const std::function<void()>& land) {
  if (!shares_.look(loads)) return false;
  land();
  for (int layer = 0; layer < std::ssize(driver_.placement().kind_of_layer); ++layer) {
    if (has_layer(layer)) tell_backend(layer);
  }
  return true;
}

bool ReplicaShares::leave_out(const BrokenExpert& broken, const std::function<void()>& land) {
  broken_.insert(broken);
  const auto& members = groups_.job().of(Share::exchange).group_with(broken.rank);
  const auto& ranks = driver_.placement()
                          .of(broken.layer)
                          .ranks_of_expert()[static_cast<std::size_t>(broken.expert)];
  const bool others = std::any_of(ranks.begin(), ranks.end(), [&](int rank) {
    const int holder = members[static_cast<std::size_t>(rank)];
    return !broken_.contains({holder, broken.layer, broken.expert});
  });
  if (!others) return false;
  land();
  const auto& own = groups_.job().of(Share::exchange).group_with(groups_.world().rank());
  if (has_layer(broken.layer) && own == members) tell_backend(broken.layer);
  return true;
}

}  // namespace atl
