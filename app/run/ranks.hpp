#pragma once
// The ranks of a run: where they are, what they were given, and where they compute.

#include <optional>
#include <string>

#include "app/config.hpp"
#include "app/run/cluster.hpp"
#include "app/run/devices.hpp"
#include "comm/allotment.hpp"
#include "comm/communicator.hpp"
#include "comm/topology.hpp"

namespace atl {

/// What a rank has for all that it holds.
struct RankMemory {
  double bytes = 0;     ///< 0: not known
  std::string by;       ///< who limits it; empty: nobody
  bool cuda = false;    ///< of a GPU, else the host's
  bool stated = false;  ///< by --memory-limit
};

struct Ranks {
  comm::Topology topology;
  comm::Allotment given;
  int threads = 1;  ///< of arithmetic, of this rank
  BackendChoice choice;
  std::optional<Cluster> cluster;  ///< where the links' speed is known
  bool memory_stated = false;      ///< --memory-limit is what limits this rank

  RankMemory memory() const;
};

/// Collective; without the cluster.
Ranks find_ranks(const comm::Communicator& world, const RunOptions& options);

/// Collective: what the links carry, which may be measured for it: where that is wanted, or there
/// are several nodes and passes choose their way.
void find_links(const comm::Communicator& world, const RunOptions& options, Ranks& ranks);

}  // namespace atl
