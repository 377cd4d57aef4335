#pragma once
// What a rank's rows were, counted over the whole run.

#include <array>
#include <cstdint>
#include <vector>

#include "app/plan/job_layout.hpp"
#include "app/plan/placement.hpp"
#include "app/plan/schedule.hpp"

namespace atl {

/// Rows and bytes that a rank sent, both ways, in the groups of one kind.
struct HopTraffic {
  std::int64_t rows = 0;
  std::int64_t bytes = 0;
};

struct Traffic {
  Traffic() = default;
  Traffic(const ModelShape& shape, const Placement& placement, const JobLayout& job);

  std::vector<std::int64_t> bytes_to;          ///< [ranks of the job], token rows sent
  std::vector<std::int64_t> tokens_of_expert;  ///< [layers * experts], rows this rank sent there
  std::vector<std::int64_t> rows_of_replica;   ///< [layers * most places], the same by replica
  std::size_t most_places = 0;
  std::int64_t rows_computed = 0;       ///< expert rows computed on this rank
  std::int64_t bytes_sent_at_once = 0;  ///< largest single exchange
  std::int64_t receive_growths = 0;     ///< times that device memory was taken within a pass

  std::array<HopTraffic, num_shares> hops;  ///< flat: stage; two hops: rail and node
  /// What the same tokens cost otherwise, in rows on the way out from this rank: by Route::flat to
  /// each rank, and at least, where each goes to each node once.
  std::vector<std::int64_t> flat_rows_to;     ///< [ranks of the job]
  std::vector<std::int64_t> node_rows_to;     ///< [nodes of the job]
  std::vector<std::int64_t> node_returns_to;  ///< [nodes], what then comes back, sums as one row
};

}  // namespace atl
