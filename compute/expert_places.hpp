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
  static constexpr std::int32_t whole_share = 64;
  static constexpr std::int32_t broken = -1;  ///< a share: after all others, slow ones too

  std::int32_t place = 0;  ///< among the rows sent: by node, there by rank, there by expert
  std::int32_t node = 0;
  Distance distance = Distance::own_rank;
  /// Of so many tokens in `whole_share` it is chosen as any other would be; the rest take it only
  /// where they find no other.
  std::int32_t share = whole_share;
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

/// Whether a token is among those for which a replica is as good as another; they are spread
/// evenly.
ATOLL_BOTH inline bool in_share(const ReplicaPlace& replica, int token) {
  constexpr std::uint32_t odd = 37;  // token after token somewhere else
  const auto whole = static_cast<std::uint32_t>(ReplicaPlace::whole_share);
  return static_cast<std::int32_t>(static_cast<std::uint32_t>(token) * odd % whole) < replica.share;
}

/// Worse than any replica at any distance, and than that.
inline constexpr int outside_share = 8, worst = 16;

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
      const ReplicaPlace& replica = table.replicas[candidate];
      const int rank = rank_replica(table, replica, chosen, top_k) +
                       (replica.share == ReplicaPlace::broken ? worst
                        : in_share(replica, token)            ? 0
                                                              : outside_share);
      if (found >= 0 && rank >= best) continue;
      best = rank;
      found = candidate;
    }
    chosen[j] = found;
  }
}

}  // namespace atl::compute
