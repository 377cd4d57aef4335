#pragma once
// Rows between who has tokens and who holds their experts, in every layer and chunk of a pass:
// what the routers' counters would say.

#include <cstdint>
#include <span>
#include <vector>

#include "app/plan/job_groups.hpp"
#include "app/plan/pass_load.hpp"
#include "app/plan/placement.hpp"
#include "app/plan/routing_source.hpp"

namespace atl {

/// Of one exchange, layer and chunk.
struct LayerRows {
  int num_ranks = 0;   ///< of the exchange
  int num_places = 0;  ///< replicas of the layer's experts
  int num_nodes = 0;
  std::vector<std::int32_t> counts;        ///< [ranks, places]: rows for each replica
  std::vector<std::int32_t> node_rows;     ///< [ranks, nodes]: tokens that go there
  std::vector<std::int32_t> node_returns;  ///< [ranks, nodes]: rows that come back, folded

  std::span<const std::int32_t> counts_of(int rank) const {
    const auto places = static_cast<std::size_t>(num_places);
    return std::span(counts).subspan(static_cast<std::size_t>(rank) * places, places);
  }
  std::int32_t node_rows_of(int rank, int node) const {
    return node_rows[static_cast<std::size_t>(rank * num_nodes + node)];
  }
  std::int32_t node_returns_of(int rank, int node) const {
    return node_returns[static_cast<std::size_t>(rank * num_nodes + node)];
  }
};

/// Tokens of a rank in a chunk: its part of its owner's.
std::int64_t own_rows(const JobGroups& groups, const PassLoad& load, int rank, int chunk);

class RoutedRows {
 public:
  /// Of the exchanges in `wanted` (groups of Share::exchange).
  RoutedRows(const JobGroups& groups, const ModelShape& shape, const Placement& placement,
             const RoutingSource& source, const PassLoad& load, std::span<const int> wanted);

  const LayerRows& of(int group, int layer, int chunk) const {
    return rows_[index(group, layer, chunk)];
  }

 private:
  std::size_t index(int group, int layer, int chunk) const {
    const int wanted = index_of_group_[static_cast<std::size_t>(group)];
    return static_cast<std::size_t>((wanted * num_layers_ + layer) * num_chunks_ + chunk);
  }
  void count_rank(const JobGroups& groups, const ModelShape& shape, const Placement& placement,
                  const PassLoad& load, int group, int place);
  void count(const compute::ExpertPlaces& places, const LoadSegment& segment, int layer, int rank,
             LayerRows& out) const;

  const RoutingSource& source_;
  std::vector<int> index_of_group_;  // -1: not wanted
  int num_layers_ = 0, num_chunks_ = 0;
  std::vector<LayerRows> rows_;  // [wanted, layers, chunks]
};

}  // namespace atl
