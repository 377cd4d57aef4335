#pragma once
// Rows of device memory that travel through pinned host memory, in pieces: while one piece is with
// MPI, the next is copied from the device and the last one to it. The pinned memory is bounded,
// whatever the exchange.

#include <mpi.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "comm/communicator.hpp"
#include "comm/requests.hpp"
#include "compute/device_memory.hpp"

namespace atl::comm {

struct ExchangePlan;

/// One chunk's way through the host. One exchange is under way at a time.
class Staging {
 public:
  virtual ~Staging() = default;

  /// Starts moving the rows of `send` into `recv`, both on the device. `plan` and the buffers stay
  /// untouched until advance() is true.
  virtual void start(const ExchangePlan& plan, const void* send, void* recv) = 0;
  /// Moves what can move; true once all rows are on the device.
  virtual bool advance() = 0;
  virtual Awaited awaited() const = 0;
};

/// What staging knows. The row type and the communicator outlive it.
struct StagingSetup {
  const Communicator* comm = nullptr;
  compute::DeviceMemory* device = nullptr;
  std::size_t row_bytes = 0;
  MPI_Datatype row_type = MPI_DATATYPE_NULL;
  std::size_t pinned_bytes = std::size_t{16} << 20;  ///< in each direction, at most about this
};

/// One message per piece and peer.
std::unique_ptr<Staging> make_pairwise_staging(const StagingSetup& setup);

}  // namespace atl::comm
