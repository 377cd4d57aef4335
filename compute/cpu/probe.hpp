#pragma once
// What one core of this process does, measured in half a second: for checks of a machine.

#include <string>

namespace atl::compute {

/// Rates by the processor time that the measuring thread got, so that they are the core's whoever
/// else has a part of it; `share` says how large this thread's part was.
struct CoreRates {
  double flops_per_s = 0;       ///< of BF16 GEMMs with weights of 2 MB, one thread
  double read_bytes_per_s = 0;  ///< of 64 MiB of memory that are read once
  double share = 1;             ///< processor time over time
};

/// Throws Error if a result is wrong.
CoreRates measure_core();

/// Version of the oneDNN that is loaded.
std::string one_dnn_version();

}  // namespace atl::compute
