#pragma once
// Rows that lie in several places, moved together into one and back.

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "compute/types.hpp"

namespace atl::compute::cuda {

/// Up to so many runs, as a kernel gets them by value.
struct RowRuns {
  static constexpr int most = 64;
  std::byte* rows[most] = {};         ///< of each run, in device memory
  std::int64_t first[most + 1] = {};  ///< of each run among all; at the end how many all are
  int count = 0;
};

/// together [all rows, width] = the rows of the runs, one after the other; and back.
void gather_rows(cudaStream_t stream, DType dtype, const RowRuns& runs, void* together, int width);
void scatter_rows(cudaStream_t stream, DType dtype, const RowRuns& runs, const void* together,
                  int width);

}  // namespace atl::compute::cuda
