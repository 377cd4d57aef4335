#include "app/run/traffic.hpp"

#include <algorithm>

namespace atl {

Traffic::Traffic(const ModelShape& shape, const Placement& placement, const JobLayout& job)
    : bytes_to(static_cast<std::size_t>(job.num_ranks())),
      tokens_of_expert(static_cast<std::size_t>(shape.num_layers * std::max(1, shape.num_experts))),
      flat_rows_to(static_cast<std::size_t>(job.num_ranks())),
      node_rows_to(static_cast<std::size_t>(job.num_nodes())),
      node_returns_to(node_rows_to.size()) {
  for (const LayerPlacement& kind : placement.kinds) {
    most_places = std::max(most_places, kind.replicas().size());
  }
  rows_of_replica.resize(static_cast<std::size_t>(shape.num_layers) * most_places);
}

}  // namespace atl
