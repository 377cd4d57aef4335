#pragma once
// The report's part on rows: which expert got how many, where its replicas are, which way rows took
// and what that cost on the links, beside what it would have cost otherwise. Whole numbers.

#include <cstdint>
#include <nlohmann/json.hpp>
#include <vector>

#include "app/run/report.hpp"
#include "app/run/traffic.hpp"
#include "comm/communicator.hpp"

namespace atl {

/// All ranks' rows, on rank 0.
struct AllTraffic {
  std::vector<std::vector<std::int64_t>> bytes_to;      ///< [ranks][ranks]
  std::vector<std::vector<std::int64_t>> flat_rows_to;  ///< [ranks][ranks]
  std::vector<std::vector<std::int64_t>> node_rows_to;  ///< [ranks][nodes]
  Traffic sum;
};

/// Collective.
AllTraffic gather_traffic(const comm::Communicator& world, const Traffic& mine,
                          const Placement& placement);

/// Into how many parts the job is divided, and what became of attention's output projection.
nlohmann::json layout_json(const RunFacts& facts);

void add_traffic(nlohmann::json& report, const AllTraffic& traffic, const RunFacts& facts);

}  // namespace atl
