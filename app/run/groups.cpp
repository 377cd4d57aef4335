#include "app/run/groups.hpp"

#include <utility>

namespace atl {

Groups::Groups(const comm::Communicator& world, Layout layout, bool nodes)
    : world_(&world), layout_(std::move(layout)) {
  if (!nodes) return;
  const auto group_of = [&](Share share) {
    return layout_.of(share).group_of[static_cast<std::size_t>(world.rank())];
  };
  node_ = world.split(group_of(Share::node));
  rail_ = world.split(group_of(Share::rail));
}

const comm::Communicator& Groups::of(Share share) const {
  switch (share) {
    case Share::node:
      return node_ ? *node_ : *world_;
    case Share::rail:
      return rail_ ? *rail_ : *world_;
    case Share::stage:
      break;
  }
  return *world_;
}

}  // namespace atl
