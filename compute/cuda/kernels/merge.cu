// The experts' rows merged into the residual stream, and the norm that comes next.

#include "compute/cuda/kernels/norm.cuh"

namespace atl::compute::cuda {

void merge(cudaStream_t stream, DType dtype, float* x, const void* rows, const std::int32_t* slots,
           const float* weights, int num_tokens, int top_k, int hidden, const float* norm_weight,
           float eps, void* normed) {
  NormArgs args;
  args.x = x;
  args.added = rows;
  args.slots = slots;
  args.weights = weights;
  args.top_k = top_k;
  args.norm = norm_weight;
  args.eps = eps;
  args.out = normed;
  args.hidden = hidden;
  launch_norm<Source::experts>(stream, "merge", dtype, args, num_tokens);
}

}  // namespace atl::compute::cuda
