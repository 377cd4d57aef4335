#include "comm/allgather.hpp"

namespace atl::comm {

Allgather::Allgather(const Communicator& comm, const void* value, void* all, std::size_t bytes)
    : request_(comm.start_allgather(value, all, bytes)), waiting_("MPI_Iallgather") {}

bool Allgather::test() {
  int done = 0;
  check(MPI_Test(&request_, &done, MPI_STATUS_IGNORE), "MPI_Iallgather");
  return done != 0;
}

}  // namespace atl::comm
