// Log-probabilities of given tokens: what sampling and scoring need of a row of logits.

#include "compute/cuda/kernels.hpp"
#include "compute/cuda/kernels/device.cuh"
#include "compute/sampling_arithmetic.hpp"

namespace atl::compute::cuda {

namespace {

constexpr int threads = 512;

/// One block per row: the largest logit, then the sum of exponentials, four logits at a time where
/// the row allows it.
template <int N>
__global__ void __launch_bounds__(threads)
    log_prob_kernel(const float* logits, const std::int32_t* targets, ScoredToken* out, int vocab) {
  float* partial = dynamic_shared<float>();
  const float* row = logits + std::int64_t{blockIdx.x} * vocab;
  const int target = targets[blockIdx.x];
  const int first = static_cast<int>(threadIdx.x) * N;
  float top = -INFINITY;
#pragma unroll 4
  for (int i = first; i < vocab; i += threads * N) {
    float values[N];
    load_floats(row + i, values);
#pragma unroll
    for (int k = 0; k < N; ++k) top = fmaxf(top, values[k]);
  }
  top = block_max(top, partial);
  float total = 0;
  float earlier = 0;  // 1 where one before the target is as large as any
#pragma unroll 4
  for (int i = first; i < vocab; i += threads * N) {
    float values[N];
    load_floats(row + i, values);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      // Minus infinity has no weight, and the largest passes by NaN: neither may go unseen.
      total += is_finite(values[k]) ? expf(values[k] - top) : NAN;
      if (values[k] == top && i + k < target) earlier = 1;
    }
  }
  total = block_sum(total, partial + warp_lanes);
  earlier = block_max(earlier, partial);
  if (threadIdx.x == 0) {
    out[blockIdx.x] = {static_cast<float>(static_cast<double>(row[target]) - top -
                                          log(static_cast<double>(total))),
                       row[target] == top && earlier == 0 ? 1 : 0};
  }
}

}  // namespace

void log_probs(cudaStream_t stream, const float* logits, const std::int32_t* targets,
               ScoredToken* out, int num_rows, int vocab) {
  const bool aligned = rows_are_aligned(static_cast<std::size_t>(vocab) * sizeof(float), logits);
  launch(stream, "log_probs", aligned ? &log_prob_kernel<4> : &log_prob_kernel<1>,
         dim3(static_cast<unsigned>(num_rows)), threads, 2 * warp_lanes * sizeof(float), logits,
         targets, out, vocab);
}

}  // namespace atl::compute::cuda
