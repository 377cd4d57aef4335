#pragma once
// What the launcher (mpirun, mpiexec, srun) told this process, in its environment.

#include <functional>
#include <optional>
#include <string>

namespace atl::comm::launcher {

/// The value of an environment variable, or nullptr.
using Variables = std::function<const char*(const char*)>;
Variables own_environment();

/// True when a launcher of MPI started this process. Slurm's variables do not count: batch scripts
/// and shells have them too.
bool started_this(const Variables& variables = own_environment());

/// True when this process is all there is, so that commands for one process need no MPI: no
/// launcher started it, or one that started only this, as far as its and Slurm's variables say.
bool alone(const Variables& variables = own_environment());

/// Ranks on this node as announced, before MPI_Init; 1 where nothing says how many.
int announced_local_ranks(const Variables& variables = own_environment());

/// This process's number among those of its node, as announced; 0 where nothing says.
int announced_local_rank(const Variables& variables = own_environment());
/// The same; nothing where a launcher started several and did not say.
std::optional<int> known_local_rank(const Variables& variables = own_environment());

/// Why this process is one of several that were started together and that MPI, which knows of
/// `size` ranks, did not join: each would do the whole job. Empty where nothing says so. `task` is
/// the process's id, `step_daemon` the name of Slurm's daemon above it.
std::string why_split(int size, const Variables& variables, long task,
                      const std::string& step_daemon);

/// Throws Error where why_split() of this process has a reason.
void require_joined(int size);

}  // namespace atl::comm::launcher
