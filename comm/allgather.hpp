#pragma once

#include <mpi.h>

#include <cstddef>
#include <span>
#include <type_traits>

#include "comm/communicator.hpp"
#include "comm/watchdog.hpp"

namespace atl::comm {

/// Collective: a value of every rank, told to all of them, while the caller goes on with something
/// else. The calling thread counts as waiting for other ranks while this lives.
class Allgather {
 public:
  /// `value` and `all` [size()] are left alone until test() is true.
  template <class T>
  Allgather(const Communicator& comm, const T& value, std::span<T> all)
      : Allgather(comm, &value, all.data(), sizeof(T)) {
    static_assert(std::is_trivially_copyable_v<T>);
    require(all.size() == static_cast<std::size_t>(comm.size()),
            "allgather: wrong number of entries");
  }
  Allgather(const Allgather&) = delete;
  Allgather& operator=(const Allgather&) = delete;

  /// Lets MPI make progress; true: all have been heard.
  bool test();

 private:
  Allgather(const Communicator& comm, const void* value, void* all, std::size_t bytes);

  MPI_Request request_ = MPI_REQUEST_NULL;
  Waiting waiting_;
};

}  // namespace atl::comm
