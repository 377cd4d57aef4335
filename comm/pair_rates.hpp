#pragma once
// What each link between two nodes carries, pair by pair, so that a slow one can be named.

#include <vector>

#include "comm/topology.hpp"

namespace atl::comm {

class Communicator;

struct PairRate {
  int a = 0;                ///< node, below b
  int b = 0;                ///< node
  double bytes_per_s = 0;   ///< each way, both ways at once, between the nodes' first ranks
  double round_trip_s = 0;  ///< of 8 bytes
};

/// Nodes up to which all pairs are measured, one after another; more: each with the next, many at
/// once.
inline constexpr int most_nodes_for_all_pairs = 8;

/// Those pairs, without rates.
std::vector<PairRate> pairs_of_nodes(const Topology& topology);

/// Collective. The same on all ranks; empty on one node.
std::vector<PairRate> measure_pairs(const Communicator& world, const Topology& topology);

/// Collective. Nodes, other than its own, whose first rank this rank did not hear by UDP, as
/// watchdogs talk to one another; among the pairs above. Only first ranks of nodes ask.
std::vector<int> unheard_by_udp(const Communicator& world, const Topology& topology);

}  // namespace atl::comm
