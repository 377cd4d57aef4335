#pragma once
// Which ranks sit on which node. A value without MPI; discovery is the only part that communicates.

#include <string>
#include <vector>

namespace atl::comm {

class Communicator;

struct Topology {
  std::vector<std::string> node_names;  ///< [nodes], by first rank
  std::vector<int> node_of;             ///< [ranks]
  std::vector<int> local_rank_of;       ///< [ranks], counted from 0 inside each node

  int num_nodes() const { return static_cast<int>(node_names.size()); }
  int num_ranks() const { return static_cast<int>(node_of.size()); }
  int ranks_on(int node) const;
};

/// Collective. Nodes are found by shared memory; ranks that share it are on one node.
Topology discover_topology(const Communicator& world);

/// Collective. Seconds to add to this rank's steady clock to get rank 0's: 0 on rank 0's node,
/// elsewhere half a round trip at best of several tries.
double clock_offset(const Communicator& world, const Topology& topology);

}  // namespace atl::comm
