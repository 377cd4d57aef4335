#pragma once
// The ways in which rows travel: one interface, one table (kind.hpp), one file each.

#include <mpi.h>

#include <cstddef>
#include <cstdint>
#include <memory>

#include "comm/communicator.hpp"
#include "comm/poller.hpp"
#include "comm/row_move.hpp"
#include "comm/transports/kind.hpp"
#include "compute/device_memory.hpp"

namespace atl::comm {

/// One MPI element is one row, so that counts and offsets are in rows and stay far below 2^31.
class RowType {
 public:
  explicit RowType(std::size_t row_bytes);
  ~RowType();
  RowType(const RowType&) = delete;
  RowType& operator=(const RowType&) = delete;
  MPI_Datatype raw() const { return type_; }

 private:
  MPI_Datatype type_ = MPI_DATATYPE_NULL;
};

/// What a transport works with; all of it outlives the transport.
struct TransportSetup {
  const Communicator* comm = nullptr;  ///< the group's, for this transport alone
  MPI_Datatype row_type = MPI_DATATYPE_NULL;
  std::size_t row_bytes = 0;
  compute::DeviceMemory* device = nullptr;  ///< where the rows lie; null: host memory
};

/// One way in which rows travel. One move is under way at a time; after construction nothing
/// allocates.
class Transport {
 public:
  virtual ~Transport() = default;
  /// Starts moving rows of `send` into `recv`, which may be one buffer where no row is sent and
  /// received. `move` and both buffers stay untouched until done().
  virtual void start(const RowMove& move, const void* send, void* recv) = 0;
  /// Lets `poller` test what is under way, or moves what can move.
  virtual void poll_with(Poller& poller) = 0;
  /// As the last poll found it. No call of MPI.
  virtual bool done() const = 0;
  virtual Awaited awaited() const = 0;
};

/// The transport of this kind.
std::unique_ptr<Transport> make_transport(TransportKind kind, const TransportSetup& setup);

std::unique_ptr<Transport> make_ialltoallv(const TransportSetup& setup);
std::unique_ptr<Transport> make_pairwise(const TransportSetup& setup);
std::unique_ptr<Transport> make_pairwise_staged(const TransportSetup& setup);

}  // namespace atl::comm
