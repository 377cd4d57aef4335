#pragma once
// What one rank sees of the machine it runs on, for `atoll check`.

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace atl {

/// Bytes unless a name says otherwise; -1: unlimited.
struct RankFacts {
  std::string host;
  int node = 0;
  std::vector<int> cores;   ///< of the affinity mask, rising
  double cores_given = 0;   ///< this rank's part; below 1: shared
  std::string cores_by;     ///< who says so
  double memory_given = 0;  ///< this rank's part
  double node_cores = 0;    ///< what the job has of this node
  double node_memory = 0;
  std::vector<int> numa;    ///< nodes of memory that the cores are of
  std::string gpu;          ///< "none", or as CUDA_VISIBLE_DEVICES names it
  std::string card;         ///< network card: as UCX_NET_DEVICES names it, else what there is
  bool infiniband = false;  ///< there is an active port of InfiniBand or RoCE
  std::string mpi;          ///< library and version
  std::vector<std::string> mpi_loaded;  ///< interfaces of MPI libraries in this process
  std::string hdf5, one_dnn, build, kernel;
  double shm_free = 0, shm_size = 0;
  double memlock = 0;
  double open_files = 0;
  double flops_per_s = 0;  ///< of one core, per processor time
  double read_bytes_per_s = 0;
  double share = 1;            ///< of a core while measuring
  std::string folder_problem;  ///< "" where the shared folder is as rank 0 sees it
  double folder_bytes_per_s = 0;
  bool sees_lock = false;
  std::vector<int> unheard;  ///< nodes whose datagrams do not arrive
};
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(RankFacts, host, node, cores, cores_given, cores_by,
                                   memory_given, node_cores, node_memory, numa, gpu, card,
                                   infiniband, mpi, mpi_loaded, hdf5, one_dnn, build, kernel,
                                   shm_free, shm_size, memlock, open_files, flops_per_s,
                                   read_bytes_per_s, share, folder_problem, folder_bytes_per_s,
                                   sees_lock, unheard)

/// Those facts that a process finds by itself, without others and without measuring. `root` is put
/// before /proc and /sys.
RankFacts own_facts(const std::string& root = "");

/// Says on standard error, before MPI starts, why it may not: no room in /dev/shm. One process of a
/// node does.
void warn_before_mpi();

}  // namespace atl
