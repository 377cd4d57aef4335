#include "comm/allgather.hpp"

namespace atl::comm {

Allgather::Allgather(const Communicator& comm, const void* value, void* all, std::size_t bytes)
    : waiting_("MPI_Iallgather") {
  const int count = static_cast<int>(bytes);
  check(MPI_Iallgather(value, count, MPI_BYTE, all, count, MPI_BYTE, comm.raw(), &request_),
        "MPI_Iallgather");
}

bool Allgather::test() {
  int done = 0;
  check(MPI_Test(&request_, &done, MPI_STATUS_IGNORE), "MPI_Iallgather");
  return done != 0;
}

}  // namespace atl::comm
