#pragma once
// What this job was given on each of its nodes, which may be less than the node has: cores by
// affinity masks (and cpusets, which narrow them), cgroup quotas and Slurm, memory by cgroups and
// Slurm. Ranks of a node share it; each gets its part.

#include <cstdint>
#include <string>
#include <vector>

#include "comm/launcher.hpp"

namespace atl::comm {

class Communicator;
struct Topology;

/// An amount that the processes of a group share evenly.
struct Limit {
  std::string group;  ///< the same for all who share it; empty: one process alone
  double amount = 0;  ///< cores, or bytes that are free
  std::string by;     ///< who says so
  double used = 0;    ///< of its part, what this process has taken already
};

/// What one process may use, as far as it can see by itself.
struct Allowance {
  std::vector<int> cores;  ///< of its affinity mask, rising
  std::vector<Limit> core_limits;
  std::vector<Limit> memory_limits;
};

/// One rank's part of what the ranks of its node were given together.
struct Share {
  double cores = 1;  ///< below 1: several ranks share a core
  std::string cores_by;
  double memory_bytes = 0;  ///< free
  std::string memory_by;

  /// Arithmetic threads: a core each, at least one.
  int threads() const;
};

/// Where to look: `root` is put before /proc and /sys, `cores` is the affinity mask.
struct Surroundings {
  std::string root;
  launcher::Variables variables;
  std::vector<int> cores;
};
Allowance allowance_of(const Surroundings& surroundings);
/// The cores that this process may run on, rising.
std::vector<int> affinity_mask();

/// The parts of the ranks of one node. A core in several masks counts for each of these ranks in
/// part, and the amounts of a group are for those of `ranks` that are in it.
std::vector<Share> shares_of(const std::vector<Allowance>& ranks);

/// This process's part as it looks before MPI_Init, were `ranks` of the job on this node: those
/// that a launcher bound have cores of their own, others have the whole job's in their masks.
Share share_before_mpi(int ranks);

/// What all ranks found.
struct Allotment {
  struct Node {
    double cores = 0;
    std::string cores_by;
    double memory_bytes = 0;
    std::string memory_by;
  };
  std::vector<Node> nodes;  ///< [nodes]
  Share mine;
  std::vector<std::string> openmp_not_followed;  ///< see openmp_binding.hpp; this process's
};

/// Collective.
Allotment find_allotment(const Communicator& world, const Topology& topology);

}  // namespace atl::comm
