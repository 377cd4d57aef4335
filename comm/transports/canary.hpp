#pragma once
// Exchanges with checked contents, over which a transport must have passed before it is used.

#include <chrono>

#include "comm/communicator.hpp"
#include "comm/transports/kind.hpp"
#include "compute/device_memory.hpp"

namespace atl::comm {

struct CanaryOptions {
  compute::DeviceMemory* device = nullptr;  ///< where the rows lie; null: host memory
  /// Beside a few rows also some MiB to some others, over which MPI libraries take other ways than
  /// for little, several times in the same memory.
  bool large = false;
  std::chrono::milliseconds patience{60000};  ///< for each exchange
};

/// How it ended, alike on all ranks.
struct CanaryResult {
  bool passed = false;  ///< every row arrived everywhere as it was sent
  /// False where an exchange did not end: the library's state is unknown then, and the memory that
  /// it may still use is never freed.
  bool ended = true;
  double bytes_per_s = 0;  ///< that the slowest rank received, at best; 0: not `large`, or one rank
};

/// Collective.
CanaryResult fly_canary(const Communicator& parent, TransportKind kind,
                        const CanaryOptions& options);

}  // namespace atl::comm
