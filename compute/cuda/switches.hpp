#pragma once
// Ways of doing the same that can be compared on a GPU: environment variables, each on unless it is
// 0. Results have the same bytes either way.

namespace atl::compute::cuda {

struct Switches {
  /// ATOLL_CUDA_COLD_TRIALS: GEMM algorithms are timed with weights that are not in a cache.
  bool cold_trials = true;
  /// ATOLL_CUDA_MERGE_STREAM: results are merged on a stream of their own, not on that of packing.
  bool merge_stream = true;
  /// ATOLL_CUDA_GATHER_KERNEL: an expert's rows are gathered by one kernel, not by a copy for each
  /// run of rows.
  bool gather_kernel = true;
  /// ATOLL_CUDA_GATHER_BY_COST: also long runs of rows are gathered where that is less to move than
  /// the weights, which a short run beside them would read again.
  bool gather_by_cost = true;
};

Switches read_switches();

}  // namespace atl::compute::cuda
