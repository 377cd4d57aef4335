#include "app/plan/placement.hpp"

#include <algorithm>

#include "compute/error.hpp"

namespace atl {

int Placement::most_experts_on_a_rank() const {
  std::size_t most = 0;
  for (const auto& experts : experts_of) most = std::max(most, experts.size());
  return static_cast<int>(most);
}

compute::Part Placement::part_of(int rank, const ModelShape& shape) const {
  compute::Part part = compute::whole_model(shape);
  const std::vector<int>& own = experts_of[static_cast<std::size_t>(rank)];
  for (std::vector<std::int32_t>& experts : part.experts) {
    if (!experts.empty()) experts = own;
  }
  part.send_order = send_order;
  return part;
}

Placement contiguous_placement(int num_experts, int num_ranks) {
  require(num_ranks <= num_experts,
          "{} ranks for {} experts (a rank owns at least one expert of every MoE layer; replicas "
          "are not supported yet); start at most {} ranks",
          num_ranks, num_experts, num_experts);
  Placement placement;
  placement.experts_of.resize(static_cast<std::size_t>(num_ranks));
  for (int rank = 0, expert = 0; rank < num_ranks; ++rank) {
    placement.first_place_of.push_back(expert);
    const int share = num_experts / num_ranks + (rank < num_experts % num_ranks ? 1 : 0);
    for (int i = 0; i < share; ++i, ++expert) {
      placement.send_order.push_back(static_cast<std::int32_t>(placement.rank_of.size()));
      placement.expert_at.push_back(expert);
      placement.rank_of.push_back(rank);
      placement.experts_of[static_cast<std::size_t>(rank)].push_back(expert);
    }
  }
  return placement;
}

}  // namespace atl
