#include "compute/cuda/kernels/attention_wgmma.cuh"

namespace atl::compute::cuda {

template void attention_group_tiles<__nv_bfloat16>(cudaStream_t stream, const AttentionArgs& args);

}  // namespace atl::compute::cuda
