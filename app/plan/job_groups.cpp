#include "app/plan/job_groups.hpp"

namespace atl {

JobGroups::JobGroups(const JobLayout& job) : job_(job) {
  for (int share = 0; share < num_shares; ++share) {
    if (share != static_cast<int>(Share::node) && share != static_cast<int>(Share::rail)) {
      groups_[static_cast<std::size_t>(share)] = job.of(static_cast<Share>(share));
    }
  }
  for (const std::vector<int>& ranks : of(Share::exchange).members) {
    exchanges_.push_back(job.exchange_of(ranks.front()));
  }
  for (const Share share : {Share::node, Share::rail}) {
    std::vector<std::int32_t> group_of(static_cast<std::size_t>(job.num_ranks()));
    std::int32_t before = 0;
    for (std::size_t e = 0; e < exchanges_.size(); ++e) {
      const Grouping& inside = exchanges_[e].of(share);
      const std::vector<int>& ranks = of(Share::exchange).members[e];
      for (std::size_t place = 0; place < ranks.size(); ++place) {
        group_of[static_cast<std::size_t>(ranks[place])] = before + inside.group_of[place];
      }
      before += static_cast<std::int32_t>(inside.members.size());
    }
    groups_[static_cast<std::size_t>(share)] = grouped(std::move(group_of));
  }
}

}  // namespace atl
