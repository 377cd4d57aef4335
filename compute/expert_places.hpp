#pragma once
// Where the experts of a layer are, as the rank sees it that routes tokens to them, and which
// replica a token takes: the same on every backend, for the C++ compiler and for nvcc.

#include <cstdint>
#include <vector>

#include "compute/both.hpp"

namespace atl::compute {

/// How far a replica is from the rank that routes.
enum class Distance : std::int32_t { own_rank, own_node, elsewhere };

/// One replica of an expert.
struct ReplicaPlace {
  std::int32_t place = 0;  ///< among the rows sent: by node, there by rank, there by expert
  std::int32_t node = 0;
  Distance distance = Distance::own_rank;
};

/// The replicas of all experts of a layer. Plain pointers, so that a kernel takes it as it is.
struct ReplicaTable {
  const std::int32_t* first_of_expert = nullptr;  ///< [experts + 1], into `replicas`
  const ReplicaPlace* replicas = nullptr;         ///< expert by expert
};

/// The same with its memory, and what follows from it.
struct ExpertPlaces {
  std::vector<std::int32_t> first_of_expert;  ///< [experts + 1]
  std::vector<ReplicaPlace> replicas;
  std::vector<std::int32_t> first_of_node;  ///< [nodes + 1]: places of a node's replicas
  int own_node = 0;

  int num_places() const { return static_cast<int>(replicas.size()); }
  int num_nodes() const { return static_cast<int>(first_of_node.size()) - 1; }
  bool has_replicas() const { return replicas.size() + 1 > first_of_expert.size(); }
  ReplicaTable table() const { return {first_of_expert.data(), replicas.data()}; }
};

/// The smaller, the better is a replica for a token: on a node where the token goes anyhow (there
/// on this rank first), then on this rank, on this node, elsewhere.
ATOLL_BOTH inline int rank_replica(const ReplicaTable& table, const ReplicaPlace& replica,
                                   const std::int32_t* chosen, int top_k) {
  for (int j = 0; j < top_k; ++j) {
    if (chosen[j] >= 0 && table.replicas[chosen[j]].node == replica.node) {
      return replica.distance == Distance::own_rank ? 0 : 1;
    }
  }
  return 2 + static_cast<int>(replica.distance);
}

/// chosen [top_k] = for each of a token's experts its replica, an index into table.replicas. Among
/// equally good ones token after token takes the next, so that each gets as many. Which one it is
/// changes no result, since all replicas compute the same.
ATOLL_BOTH inline void choose_replicas(const ReplicaTable& table, const std::int32_t* experts,
                                       int top_k, int token, std::int32_t* chosen) {
  for (int j = 0; j < top_k; ++j) {
    const std::int32_t first = table.first_of_expert[experts[j]];
    chosen[j] = table.first_of_expert[experts[j] + 1] - first == 1 ? first : -1;
  }
  for (int j = 0; j < top_k; ++j) {
    if (chosen[j] >= 0) continue;
    const std::int32_t first = table.first_of_expert[experts[j]];
    const std::int32_t count = table.first_of_expert[experts[j] + 1] - first;
    int best = 0;
    std::int32_t found = -1;
    for (std::int32_t i = 0; i < count; ++i) {
      const std::int32_t candidate = first + (token + i) % count;
      const int rank = rank_replica(table, table.replicas[candidate], chosen, top_k);
      if (found >= 0 && rank >= best) continue;
      best = rank;
      found = candidate;
    }
    chosen[j] = found;
  }
}

}  // namespace atl::compute
