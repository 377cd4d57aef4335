#pragma once
// Ranks of the tests on a device.

#include "compute/cuda/backend.hpp"
#include "tests/cuda/device_memory.hpp"
#include "tests/tiny_model.hpp"

namespace atl::testing {

inline RankOptions on_cuda(DType dtype) {
  RankOptions options;
  options.dtype = dtype;
  options.make_backend = [](const compute::BackendOptions& given) {
    compute::CudaShare share;
    share.device = compute::open_cuda_device(0);
    return compute::make_cuda_backend(given, share);
  };
  return options;
}

/// Between buffers of ranks on one device; done when it returns.
inline void copy_on_device(void* to, const void* from, std::size_t bytes) {
  expect_success(cudaMemcpy(to, from, bytes, cudaMemcpyDefault));
  expect_success(cudaDeviceSynchronize());
}

}  // namespace atl::testing
