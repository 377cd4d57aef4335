// Whether this program's kernels run on the current device.

#include "compute/cuda/kernels.hpp"

namespace atl::compute::cuda {

namespace {

/// Compiled for the same architectures as all others.
__global__ void probe_kernel() {}

}  // namespace

cudaError_t find_kernels(int& architecture) {
  cudaFuncAttributes attributes{};
  const cudaError_t code =
      cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(&probe_kernel));
  architecture = attributes.binaryVersion;
  return code;
}

std::string built_architectures() {
#ifdef ATL_CUDA_ARCHITECTURES
  return ATL_CUDA_ARCHITECTURES;
#else
  return "the emulated device";
#endif
}

}  // namespace atl::compute::cuda
