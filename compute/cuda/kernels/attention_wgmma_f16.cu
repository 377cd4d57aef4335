#include "compute/cuda/kernels/attention_wgmma.cuh"

namespace atl::compute::cuda {

template void attention_group_tiles<__half>(cudaStream_t stream, const AttentionArgs& args);

}  // namespace atl::compute::cuda
