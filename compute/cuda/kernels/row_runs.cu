// Rows of several runs: one launch in place of a copy for each run.

#include "compute/cuda/kernels/copy.cuh"
#include "compute/cuda/row_runs.hpp"

namespace atl::compute::cuda {

namespace {

/// One block per row, of `units` of type U.
template <class U, bool gather>
__global__ void __launch_bounds__(copy_threads)
    move_runs_kernel(const RowRuns runs, U* together, int units) {
  const std::int64_t row = blockIdx.x;
  int low = 0;  // the last run that begins here or before; runs are not empty
  for (int high = runs.count; high - low > 1;) {
    const int middle = (low + high) / 2;
    (runs.first[middle] <= row ? low : high) = middle;
  }
  U* apart = reinterpret_cast<U*>(runs.rows[low]) + (row - runs.first[low]) * units;
  U* beside = together + row * units;
  const U* from = gather ? apart : beside;
  U* to = gather ? beside : apart;
  const int step = static_cast<int>(blockDim.x);
#pragma unroll in_flight
  for (int i = static_cast<int>(threadIdx.x); i < units; i += step) to[i] = from[i];
}

template <bool gather>
void move_runs(cudaStream_t stream, DType dtype, const RowRuns& runs, void* together, int width) {
  // Runs begin at whole rows of buffers that are aligned: what one allows, all do, but for tests.
  std::uintptr_t any = reinterpret_cast<std::uintptr_t>(together);
  for (int r = 0; r < runs.count; ++r) {
    any |= reinterpret_cast<std::uintptr_t>(runs.rows[r]);
  }
  const auto rows = static_cast<unsigned>(runs.first[runs.count]);
  with_unit(
      dtype, width,
      [&](auto unit, int units) {
        using U = decltype(unit);
        const int threads = threads_for(units, in_flight, copy_threads);
        launch(stream, "move_runs_kernel", move_runs_kernel<U, gather>, dim3(rows),
               static_cast<unsigned>(threads), 0, runs, static_cast<U*>(together), units);
      },
      reinterpret_cast<const void*>(any));
}

}  // namespace

void gather_rows(cudaStream_t stream, DType dtype, const RowRuns& runs, void* together, int width) {
  move_runs<true>(stream, dtype, runs, together, width);
}

void scatter_rows(cudaStream_t stream, DType dtype, const RowRuns& runs, const void* together,
                  int width) {
  move_runs<false>(stream, dtype, runs, const_cast<void*>(together), width);
}

}  // namespace atl::compute::cuda
