// RMSNorm of the residual stream, alone and after adding to it.

#include "compute/cuda/kernels/norm.cuh"

namespace atl::compute::cuda {

void rms_norm(cudaStream_t stream, DType dtype, const float* x, const std::int32_t* rows,
              const float* weight, float eps, void* out, int num_rows, int hidden) {
  NormArgs args;
  args.x = x;
  args.rows = rows;
  args.norm = weight;
  args.eps = eps;
  args.out = out;
  args.hidden = hidden;
  launch_norm<Source::plain>(stream, "rms_norm", dtype, args, num_rows);
}

void add_rms_norm(cudaStream_t stream, DType dtype, float* x, const void* y, const float* weight,
                  float eps, void* out, int num_rows, int hidden) {
  NormArgs args;
  args.x = x;
  args.added = y;
  args.norm = weight;
  args.eps = eps;
  args.out = out;
  args.hidden = hidden;
  launch_norm<Source::sum>(stream, "add_rms_norm", dtype, args, num_rows);
}

}  // namespace atl::compute::cuda
