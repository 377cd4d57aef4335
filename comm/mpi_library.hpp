#pragma once
// What differs between MPI libraries (Open MPI, MPICH and those made of it: Cray's, Intel's): the
// only file that knows any by name.

#include <string>
#include <string_view>
#include <vector>

#include "comm/launcher.hpp"

namespace atl::comm::mpi_library {

/// Name and version of what MPI_Get_library_version() says: "Open MPI v4.1.4", "MPICH 4.0.2".
std::string short_version(std::string_view said);
/// The same of the library that runs.
std::string version();

/// Sets, before MPI_Init, the variables that libraries read then, unless the environment has them.
/// `ranks_share_cores`: blocking calls must give the core away while they wait.
void prepare(bool ranks_share_cores);

/// What libraries say about themselves: whether they move device memory.
struct DeviceClaims {
  bool queried = false;  ///< there is MPIX_Query_cuda_support() in the library that runs
  bool says_so = false;  ///< and what it answers
};
/// Whether a library with this version text moves device memory, by its own words or, of Cray's,
/// the variable that turns it on.
bool moves_device_memory(std::string_view said, const DeviceClaims& claims,
                         const launcher::Variables& variables);
/// The same of the library that runs. That proves nothing (a canary does), but one that denies it
/// would crash on a device pointer.
bool claims_device_memory();

/// Whether MPI's messages go over UCX. Open MPI keeps of its point-to-point layers the chosen one
/// loaded; where they are built in, UCX being there is all that can be told.
bool over_ucx();

/// MPI libraries among the files `loaded` into a process, by the names that their interfaces have
/// ("libmpi.so.40", "libmpich.so.12"), each once. More than one: the program and a library of its
/// (HDF5) were built with different ones.
std::vector<std::string> among(const std::vector<std::string>& loaded);
/// The same of this process.
std::vector<std::string> loaded_libraries();

}  // namespace atl::comm::mpi_library
