#include "comm/launcher.hpp"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <fstream>
#include <string_view>
#include <utility>

#include "comm/communicator.hpp"
#include "comm/environment.hpp"

namespace atl::comm::launcher {

namespace {

/// Number of all ranks, as the launchers of MPI announce it.
constexpr std::array size_names = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE",
                                   "JSM_NAMESPACE_SIZE"};
constexpr std::array rank_names = {"PMIX_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK", "PALS_RANKID"};

/// The variable's leading number; `otherwise` where there is none.
long number(const char* value, long otherwise) {
  if (value == nullptr) return otherwise;
  char* end = nullptr;
  const long found = std::strtol(value, &end, 10);
  return end == value ? otherwise : found;
}

/// The largest of the numbers that launchers gave this process, and who gave it; -1: none did.
std::pair<const char*, long> highest_rank(const Variables& variables) {
  std::pair<const char*, long> highest = {"", -1};
  for (const char* name : rank_names) {
    const long rank = number(variables(name), -1);
    if (rank > highest.second) highest = {name, rank};
  }
  return highest;
}

/// Tasks of the Slurm step that this process may be of; 0 where nothing says.
long step_tasks(const Variables& variables) {
  if (const char* tasks = variables("SLURM_STEP_NUM_TASKS")) return number(tasks, 1);
  if (variables("SLURM_STEP_ID") != nullptr || variables("SLURM_STEPID") != nullptr) {
    return number(variables("SLURM_NTASKS"), 1);  // of the step; without one, of the whole job
  }
  return 0;
}

/// Whether Slurm runs this process in a batch script or in an interactive shell, whose variables
/// speak of the whole job's tasks, or of those of a step that it was submitted from.
bool is_slurm_shell(const Variables& variables, long task, const std::string& step_daemon) {
  constexpr long first_special_step = 0xfffffff0;  // batch, extern, interactive, pending
  for (const char* name : {"SLURM_STEP_ID", "SLURM_STEPID"}) {
    if (number(variables(name), 0) >= first_special_step) return true;
  }
  for (const char* step : {".batch]", ".interactive]", ".extern]"}) {
    if (step_daemon.find(step) != std::string::npos) return true;
  }
  // Of `srun --pty bash` the first task is a person's shell, and this is one of its commands.
  return variables("SLURM_PTY_PORT") != nullptr && number(variables("SLURM_PROCID"), 0) == 0 &&
         number(variables("SLURM_TASK_PID"), task) != task;
}

/// What the nearest of Slurm's daemons above this process calls itself, such as
/// "slurmstepd: [7.batch]"; empty where there is none.
std::string slurm_step_daemon() {
  for (long process = getppid(); process > 1;) {
    const std::string folder = fmt::format("/proc/{}/", process);
    std::string name;
    std::getline(std::ifstream(folder + "cmdline") >> std::ws, name, '\0');
    if (name.starts_with("slurmstepd")) return name;
    process = 0;
    std::ifstream status(folder + "status");
    for (std::string line; std::getline(status, line);) {
      if (line.starts_with("PPid:")) process = std::strtol(line.c_str() + 5, nullptr, 10);
    }
  }
  return "";
}

}  // namespace

Variables own_environment() {
  return [](const char* name) -> const char* { return std::getenv(name); };
}

bool started_this(const Variables& variables) {
  const auto set = [&](const char* name) { return variables(name) != nullptr; };
  return std::any_of(size_names.begin(), size_names.end(), set) ||
         std::any_of(rank_names.begin(), rank_names.end(), set);
}

bool alone(const Variables& variables) {
  bool one = false;
  for (const char* name : size_names) {
    const long size = number(variables(name), 0);
    if (size > 1) return false;
    one = one || size == 1;
  }
  if (one || !started_this(variables)) return true;
  // A launcher that numbers its processes and leaves it to Slurm to say how many they are.
  return highest_rank(variables).second <= 0 && step_tasks(variables) == 1;
}

int announced_local_ranks(const Variables& variables) {
  for (const char* name :
       {"OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "MV2_COMM_WORLD_LOCAL_SIZE",
        "SLURM_STEP_TASKS_PER_NODE", "SLURM_NTASKS_PER_NODE"}) {
    if (const char* value = variables(name))
      return static_cast<int>(std::clamp(number(value, 1), 1L, 1L << 20));
  }
  return 1;
}

int announced_local_rank(const Variables& variables) {
  return known_local_rank(variables).value_or(0);
}

std::optional<int> known_local_rank(const Variables& variables) {
  for (const char* name : {"OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID",
                           "MV2_COMM_WORLD_LOCAL_RANK", "PALS_LOCAL_RANKID", "SLURM_LOCALID"}) {
    if (const char* value = variables(name)) return static_cast<int>(number(value, 0));
  }
  if (alone(variables)) return 0;
  return std::nullopt;
}

std::string why_split(int size, const Variables& variables, long task,
                      const std::string& step_daemon) {
  const char* larger = nullptr;
  for (const char* name : size_names) {
    const long announced = number(variables(name), 0);
    if (announced == size) return "";  // another's variable may be left over from around this job
    if (announced > size && larger == nullptr) larger = name;
  }
  if (larger != nullptr) {
    return fmt::format("the launcher started {} processes ({})", variables(larger), larger);
  }
  const auto [name, rank] = highest_rank(variables);
  if (rank >= size) return fmt::format("the launcher calls this process {} ({})", rank, name);
  if (size > 1 || is_slurm_shell(variables, task, step_daemon)) return "";
  const long tasks = step_tasks(variables);
  const long this_task = number(variables("SLURM_PROCID"), 0);
  if (tasks <= 1 && this_task == 0) return "";
  if (tasks <= 1) return fmt::format("srun started this as its task {} (SLURM_PROCID)", this_task);
  return fmt::format("srun started {} tasks (as Slurm's variables say)", tasks);
}

void require_joined(int size) {
  const std::string why = why_split(size, own_environment(), getpid(), slurm_step_daemon());
  require(why.empty(),
          "{}, and MPI ({}) knows of {}, so that each would do the whole job; under Slurm use srun "
          "--mpi=pmix, for MPICH --mpi=pmi2 (srun --mpi=list shows what there is), or mpirun "
          "inside the allocation, "
          "elsewhere the mpirun of this MPI library; a run that is to be one process: mpirun -n 1",
          why, Environment::library(), size);
}

}  // namespace atl::comm::launcher
