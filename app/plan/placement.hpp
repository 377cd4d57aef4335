#pragma once
// Which rank holds which expert.

#include <cstdint>
#include <vector>

#include "compute/weights.hpp"

namespace atl {

/// (expert) -> rank, the same for every MoE layer. Experts of one rank are numbered locally in
/// increasing order of their global number.
struct Placement {
  std::vector<int> rank_of;                  ///< [experts]
  std::vector<std::vector<int>> experts_of;  ///< [ranks][local experts]
  /// [experts]: position of an expert's rows when a rank's rows are grouped by destination
  /// (experts of rank 0 first, then of rank 1, ...).
  std::vector<std::int32_t> send_order;
  std::vector<std::int32_t> expert_at;       ///< [experts]: the expert at each such position
  std::vector<std::int32_t> first_place_of;  ///< [ranks]: position of a rank's first expert

  int num_ranks() const { return static_cast<int>(experts_of.size()); }
  int most_experts_on_a_rank() const;
  /// What `rank` has of a model of this shape.
  compute::Part part_of(int rank, const ModelShape& shape) const;
};

/// Equal contiguous shares: shares differ by at most one, the first ranks have the larger ones.
/// Throws Error when there are more ranks than experts.
Placement contiguous_placement(int num_experts, int num_ranks);

}  // namespace atl
