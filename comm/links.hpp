#pragma once
// How fast messages travel inside a node and between nodes, measured by a short exchange.

#include <optional>

#include "comm/topology.hpp"

namespace atl::comm {

class Communicator;

/// One class of links. All figures are of the slowest node or pair that was measured.
struct LinkSpeed {
  double latency_s = 0;         ///< one way, 8 bytes, one pair of ranks, nothing else under way
  double pair_bytes_per_s = 0;  ///< one rank to one other, one direction, nothing else under way
  /// What the ranks of one node send together while they receive as much and all other nodes do the
  /// same: the node's network card, or its memory, is shared.
  double node_bytes_per_s = 0;
};

struct Links {
  std::optional<LinkSpeed> inside;   ///< none where every node has one rank
  std::optional<LinkSpeed> between;  ///< none on one node
};

/// Collective; under a second on links of 1 Gbit/s or more, a few seconds on slower ones. All ranks
/// get the same figures.
Links measure_links(const Communicator& world, const Topology& topology);

}  // namespace atl::comm
