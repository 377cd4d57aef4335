#pragma once
// A job's groups as communicators, and who is in those of this rank.

#include <array>
#include <optional>
#include <vector>

#include "app/plan/job_layout.hpp"
#include "app/plan/layout.hpp"
#include "comm/communicator.hpp"

namespace atl {

class Groups {
 public:
  /// Collective. Those inside nodes and between them only where `nodes` says that rows will travel
  /// by Route::nodes. `world` outlives this.
  Groups(const comm::Communicator& world, JobLayout job, bool nodes);

  const JobLayout& job() const { return job_; }
  /// Of the ranks between which experts' rows go.
  const Layout& layout() const { return layout_; }
  const comm::Communicator& world() const { return *world_; }
  /// There is none of a network.
  const comm::Communicator& of(Share share) const;
  /// This rank's group in the order of places: of an exchange, and its nodes and rails, by their
  /// numbers in the exchange, of the rest by their ranks in the job.
  const std::vector<int>& members(Share share) const;
  /// Members' ranks in the job.
  std::vector<int> world_ranks(Share share) const;

 private:
  const comm::Communicator* world_;
  JobLayout job_;
  Layout layout_;
  std::array<std::optional<comm::Communicator>, num_shares> groups_;  // empty: the whole world
};

}  // namespace atl
