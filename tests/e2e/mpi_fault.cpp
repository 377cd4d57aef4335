// Preloaded under a test's ranks: at an exact call of MPI one rank stops, dies, is sent a signal or
// gets an error.
//
//   ATOLL_FAULT="RANK CALL COUNT ACTION"   e.g. "1 MPI_Isend 200 stop": as rank 1 makes its 200th
//   call of MPI_Isend. ACTION: stop (SIGSTOP), kill (SIGKILL), usr1, term, int (those signals),
//   fail (the call returns MPI_ERR_OTHER and does nothing).
//   Several with ; between, each of which happens.
//   ATOLL_FAULT_MOMENT=FILE   is made at that moment
//   With ACTION slow, every call takes COUNT milliseconds longer.
#include <mpi.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <thread>
#include <vector>

namespace {

struct Fault {
  char call[64] = {};
  char action[16] = {};
  long left = -1;  // calls until it happens; negative: never
};

std::vector<Fault> faults_of_this_rank() {
  std::vector<Fault> faults;
  const char* text = std::getenv("ATOLL_FAULT");
  const char* rank = nullptr;
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID"}) {
    if (rank == nullptr) rank = std::getenv(name);
  }
  if (rank == nullptr) return faults;
  while (text != nullptr) {
    Fault fault;
    int victim = -1;
    if (std::sscanf(text, "%d %63s %ld %15[^;]", &victim, fault.call, &fault.left, fault.action) !=
        4) {
      std::abort();
    }
    if (victim == std::atoi(rank)) faults.push_back(fault);
    text = std::strchr(text, ';');
    if (text != nullptr) ++text;
  }
  return faults;
}

/// True when this call is to fail.
bool strikes(Fault& fault) {
  if (std::strcmp(fault.action, "slow") == 0) {
    std::this_thread::sleep_for(std::chrono::milliseconds(fault.left));
    return false;
  }
  if (--fault.left > 0) return false;
  fault.left = -1;
  if (const char* moment = std::getenv("ATOLL_FAULT_MOMENT")) {
    if (std::FILE* file = std::fopen(moment, "w")) std::fclose(file);
  }
  struct Action {
    const char* name;
    int signal;
  };
  for (const Action action :
       {Action{"stop", SIGSTOP}, Action{"kill", SIGKILL}, Action{"usr1", SIGUSR1},
        Action{"term", SIGTERM}, Action{"int", SIGINT}}) {
    if (std::strcmp(fault.action, action.name) == 0) raise(action.signal);
  }
  return std::strcmp(fault.action, "fail") == 0;
}

bool strikes(const char* call) {
  static std::vector<Fault> faults = faults_of_this_rank();
  bool fails = false;
  for (Fault& fault : faults) {
    if (fault.left >= 0 && std::strcmp(call, fault.call) == 0) fails = strikes(fault) || fails;
  }
  return fails;
}

}  // namespace

// NOLINTBEGIN(bugprone-macro-parentheses)
#define INTERPOSE(name, parameters, arguments) \
  extern "C" int name parameters {             \
    if (strikes(#name)) return MPI_ERR_OTHER;  \
    return P##name arguments;                  \
  }
// NOLINTEND(bugprone-macro-parentheses)

INTERPOSE(MPI_Init_thread, (int* argc, char*** argv, int required, int* provided),
          (argc, argv, required, provided))
INTERPOSE(MPI_Finalize, (void), ())
INTERPOSE(MPI_Comm_dup, (MPI_Comm comm, MPI_Comm* copy), (comm, copy))
INTERPOSE(MPI_Comm_split_type, (MPI_Comm comm, int type, int key, MPI_Info info, MPI_Comm* part),
          (comm, type, key, info, part))
INTERPOSE(MPI_Iallgather,
          (const void* from, int from_count, MPI_Datatype from_type, void* to, int to_count,
           MPI_Datatype to_type, MPI_Comm comm, MPI_Request* request),
          (from, from_count, from_type, to, to_count, to_type, comm, request))
INTERPOSE(MPI_Ialltoallv,
          (const void* from, const int* from_counts, const int* from_offsets,
           MPI_Datatype from_type, void* to, const int* to_counts, const int* to_offsets,
           MPI_Datatype to_type, MPI_Comm comm, MPI_Request* request),
          (from, from_counts, from_offsets, from_type, to, to_counts, to_offsets, to_type, comm,
           request))
INTERPOSE(MPI_Allreduce,
          (const void* from, void* to, int count, MPI_Datatype type, MPI_Op operation,
           MPI_Comm comm),
          (from, to, count, type, operation, comm))
INTERPOSE(MPI_Isend,
          (const void* data, int count, MPI_Datatype type, int to, int tag, MPI_Comm comm,
           MPI_Request* request),
          (data, count, type, to, tag, comm, request))
INTERPOSE(MPI_File_write_at,
          (MPI_File file, MPI_Offset offset, const void* data, int count, MPI_Datatype type,
           MPI_Status* status),
          (file, offset, data, count, type, status))
INTERPOSE(MPI_File_open, (MPI_Comm comm, const char* name, int mode, MPI_Info info, MPI_File* file),
          (comm, name, mode, info, file))
