#include "compute/cuda/kernels/attention.cuh"

namespace atl::compute::cuda {

template void attention_tiles<__nv_bfloat16>(cudaStream_t stream, const AttentionArgs& args);

}  // namespace atl::compute::cuda
