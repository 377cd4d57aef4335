#pragma once
// The layout's groups as communicators.

#include <optional>

#include "app/plan/layout.hpp"
#include "comm/communicator.hpp"

namespace atl {

class Groups {
 public:
  /// Collective. Those inside nodes and between them only where `nodes` says that rows will travel
  /// by Route::nodes. `world` outlives this.
  Groups(const comm::Communicator& world, Layout layout, bool nodes);

  const Layout& layout() const { return layout_; }
  const comm::Communicator& world() const { return *world_; }
  const comm::Communicator& of(Share share) const;
  /// This rank's group: its members' ranks.
  const std::vector<int>& members(Share share) const {
    return layout_.of(share).group_with(world_->rank());
  }

 private:
  const comm::Communicator* world_;
  Layout layout_;
  std::optional<comm::Communicator> node_, rail_;
};

}  // namespace atl
