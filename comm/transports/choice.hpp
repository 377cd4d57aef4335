#pragma once
// Which way rows travel: no transport is used before exchanges with checked contents have passed
// over it.

#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "comm/transports/canary.hpp"
#include "comm/transports/transport.hpp"
#include "compute/device_memory.hpp"

namespace atl::comm {

/// In which order "auto" tries them. In device memory MPI_Ialltoallv comes first over UCX;
/// elsewhere pairwise does, since Open MPI's documentation takes device pointers in point-to-point
/// calls only.
std::vector<TransportKind> transports_to_try(bool on_device, bool over_ucx);

/// Collective: true on all ranks if rows in the memory of `device`, where one is given, arrive.
bool canary(const Communicator& parent, TransportKind kind,
            compute::DeviceMemory* device = nullptr);

struct TransportSearch {
  std::optional<TransportKind> wanted;      ///< none: the first that works
  compute::DeviceMemory* device = nullptr;  ///< where rows lie; null: host memory
  /// A file that names what is being tried on device memory, for a start after one that crashed of
  /// it; empty: none is written.
  std::string note;
  std::chrono::milliseconds patience{60000};
};

struct TransportChoice {
  struct Tried {
    TransportKind kind;
    bool passed;
    double bytes_per_s;  ///< that the slowest rank received; 0: only a few rows were sent
  };
  TransportKind kind = TransportKind::ialltoallv;
  std::vector<Tried> tried;
  /// What is to be told of transports that an earlier start crashed of; empty: nothing.
  std::string left_out;
};

/// Collective: the transport `wanted`, or with none the first that works. Rows in host memory go by
/// ialltoallv or pairwise; rows in the memory of `device` by these where the MPI library moves
/// device memory (see transports_to_try) and is no slower than staging, else staged. Throws Error
/// when none works, or when MPI may still use the memory of one that did not.
TransportChoice find_transport(const Communicator& parent, const TransportSearch& search);

/// The same, without a note.
TransportKind choose_transport(const Communicator& parent, std::optional<TransportKind> wanted,
                               compute::DeviceMemory* device = nullptr);

}  // namespace atl::comm
