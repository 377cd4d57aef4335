#pragma once
// The groups of all ranks of a job, by what they share: JobLayout's, and inside each exchange those
// of nodes and rails, with ranks numbered as in the job.

#include <array>
#include <vector>

#include "app/plan/job_layout.hpp"

namespace atl {

class JobGroups {
 public:
  explicit JobGroups(const JobLayout& job);

  const Grouping& of(Share share) const { return groups_[static_cast<std::size_t>(share)]; }
  int group_of(Share share, int rank) const {
    return of(share).group_of[static_cast<std::size_t>(rank)];
  }
  int place_of(Share share, int rank) const {
    return of(share).place_of[static_cast<std::size_t>(rank)];
  }
  const std::vector<int>& members(Share share, int group) const {
    return of(share).members[static_cast<std::size_t>(group)];
  }
  /// Nodes of an exchange, ranks numbered inside it.
  const Layout& exchange(int group) const { return exchanges_[static_cast<std::size_t>(group)]; }
  const JobLayout& job() const { return job_; }

 private:
  JobLayout job_;
  std::array<Grouping, num_shares> groups_;
  std::vector<Layout> exchanges_;  // [groups of Share::exchange]
};

}  // namespace atl
