#pragma once
// What OpenMP is told about binding threads to cores is not followed: each rank's library counts
// the places among the cores of the whole job, so that the first threads of all ranks get the same
// core, and it binds before main(), so that the process no longer sees the cores it was given.
// Threads are bound by the launcher (mpirun, srun, jobs/bind.sh), which knows of all ranks.

#include <string>
#include <vector>

namespace atl::comm {

/// "NAME=VALUE" of each variable (OMP_PROC_BIND, OMP_PLACES, ...) that asked for a binding when
/// this process started and was taken out of its environment, before the OpenMP library read it.
std::vector<std::string> openmp_bindings_not_followed();

/// Puts them back, for a program that this process becomes by exec.
void restore_openmp_bindings();

}  // namespace atl::comm
