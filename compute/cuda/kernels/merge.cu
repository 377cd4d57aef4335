// The experts' rows merged into the residual stream, and the norm that comes next.

#include "compute/cuda/kernels/norm.cuh"

namespace atl::compute::cuda {

void merge(cudaStream_t stream, DType dtype, const MergeArgs& args) {
  NormArgs norm;
  norm.x = args.x;
  norm.added = args.rows;
  norm.slots = args.slots;
  norm.weights = args.weights;
  norm.top_k = args.top_k;
  norm.from_nodes = args.from_nodes;
  norm.norm = args.norm_weight;
  norm.eps = args.eps;
  norm.out = args.normed;
  norm.hidden = args.hidden;
  launch_norm<Source::experts>(stream, "merge", dtype, norm, args.num_tokens);
}

}  // namespace atl::compute::cuda
