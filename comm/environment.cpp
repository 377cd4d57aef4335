#include "comm/environment.hpp"

#include <mpi.h>

#include <algorithm>
#include <cstdlib>
#include <string_view>

#include "comm/allotment.hpp"
#include "comm/communicator.hpp"
#include "comm/launcher.hpp"
#include "comm/mpi_library.hpp"
#include "comm/watchdog.hpp"

namespace atl::comm {

std::string Environment::library() {
  return mpi_library::version();
}

bool Environment::ucx_may_use_tcp(const char* transports, const char* devices) {
  // Lists with commas; "^" before a list of transports excludes these. "mlx5_0:1" is a port of an
  // InfiniBand card, "eth0" what TCP runs on.
  const auto any_of = [](std::string_view list, const auto& wanted) {
    for (std::size_t begin = 0; begin <= list.size();) {
      const std::size_t end = std::min(list.find(',', begin), list.size());
      if (wanted(list.substr(begin, end - begin))) return true;
      begin = end + 1;
    }
    return false;
  };
  const std::string_view names = transports == nullptr ? "all" : transports;
  const bool excluding = !names.empty() && names.front() == '^';
  const bool named = any_of(names.substr(excluding ? 1 : 0),
                            [](std::string_view name) { return name == "tcp" || name == "all"; });
  const bool has_device = devices == nullptr || any_of(devices, [](std::string_view name) {
                            return name.find(':') == std::string_view::npos;
                          });
  return named != excluding && has_device;
}

Environment::Environment(int* argc, char*** argv) {
  mpi_library::prepare(share_before_mpi(launcher::announced_local_ranks()).cores < 1);
  // Over TCP, UCX's writes into the receiver's memory let all messages that are under way share the
  // link, so that the exchanges of all chunks end late and together. Without them the first one is
  // there first, and arithmetic can go on with it. Where no TCP is, UCX warns of what it did not
  // use.
  if (ucx_may_use_tcp(std::getenv("UCX_TLS"), std::getenv("UCX_NET_DEVICES"))) {
    setenv("UCX_TCP_PUT_ENABLE", "n", /*overwrite=*/0);
  }
  // Of memory that UCX did not see being allocated, as by a runtime that is linked statically, it
  // may remember that it is the host's.
  setenv("UCX_MEMTYPE_CACHE", "n", /*overwrite=*/0);
  const Waiting waiting("MPI_Init");
  int provided = MPI_THREAD_SINGLE;
  check(MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided), "MPI_Init_thread");
  require(provided >= MPI_THREAD_FUNNELED,
          "this MPI library offers no MPI_THREAD_FUNNELED (it answered {}); use one built with "
          "thread support",
          provided);
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
}

Environment::~Environment() {
  const Waiting waiting("MPI_Finalize");
  MPI_Finalize();
}

}  // namespace atl::comm
