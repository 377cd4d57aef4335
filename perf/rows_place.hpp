#pragma once
// Where the rows that exchange_bench moves lie: exchange_bench links host_rows.cpp,
// gpu_exchange_bench device_rows.cpp.

#include <functional>
#include <memory>
#include <string>

#include "compute/device_memory.hpp"

namespace atl::perf {

struct RowsPlace {
  std::string why_none;                           ///< not empty: there is no device
  std::shared_ptr<compute::DeviceMemory> memory;  ///< null: host memory
  /// Bytes per second, read and written, of a copy inside the device's memory, while other ranks
  /// do the same; `tiny`: of a small one.
  std::function<double(bool tiny)> copy_rate;
};

/// Before MPI_Init, so that the MPI library finds this rank's device chosen.
RowsPlace open_rows_place();

}  // namespace atl::perf
