#include "app/run/groups.hpp"

#include <utility>

#include "compute/error.hpp"

namespace atl {

namespace {
bool is_of_exchange(Share share) {
  return share == Share::exchange || share == Share::node || share == Share::rail;
}
}  // namespace

Groups::Groups(const comm::Communicator& world, JobLayout job, bool nodes)
    : world_(&world), job_(std::move(job)), layout_(job_.exchange_of(world.rank())) {
  for (int s = 0; s < num_shares; ++s) {
    const auto share = static_cast<Share>(s);
    if (share == Share::node || share == Share::rail || share == Share::network) continue;
    const Grouping& grouping = job_.of(share);
    if (grouping.members.size() == 1) continue;
    groups_[static_cast<std::size_t>(s)] =
        world.split(grouping.group_of[static_cast<std::size_t>(world.rank())]);
  }
  if (!nodes) return;
  const comm::Communicator& exchange = of(Share::exchange);
  for (const Share share : {Share::node, Share::rail}) {
    groups_[static_cast<std::size_t>(share)] =
        exchange.split(layout_.of(share).group_of[static_cast<std::size_t>(exchange.rank())]);
  }
}

const comm::Communicator& Groups::of(Share share) const {
  require(share != Share::network, "internal: networks talk as parts of the world");
  const auto& group = groups_[static_cast<std::size_t>(share)];
  if (group) return *group;
  return share == Share::node || share == Share::rail ? of(Share::exchange) : *world_;
}

const std::vector<int>& Groups::members(Share share) const {
  return is_of_exchange(share) ? layout_.of(share).group_with(of(Share::exchange).rank())
                               : job_.of(share).group_with(world_->rank());
}

std::vector<int> Groups::world_ranks(Share share) const {
  std::vector<int> ranks = members(share);
  if (!is_of_exchange(share)) return ranks;
  const std::vector<int>& exchange = job_.of(Share::exchange).group_with(world_->rank());
  for (int& rank : ranks) rank = exchange[static_cast<std::size_t>(rank)];
  return ranks;
}

}  // namespace atl
