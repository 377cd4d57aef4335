// The CUDA backend of a build without CUDA: it is there, finds no device and says what is missing.

#include "compute/cuda/backend.hpp"
#include "compute/error.hpp"

namespace atl::compute {

namespace {
constexpr const char* why =
    "this program was built without CUDA (no nvcc was found, or ATOLL_CUDA=OFF): use --backend "
    "cpu, "
    "or build preset cuda with the CUDA toolkit on PATH";
}  // namespace

CudaDevices find_cuda_devices() {
  return {0, why};
}

void choose_cuda_device(std::optional<int> /*local_rank*/) {}

CudaDevice open_cuda_device(int /*index*/) {
  fail("no CUDA backend: {}", why);
}

std::int64_t free_cuda_bytes() {
  fail("no CUDA backend: {}", why);
}

std::unique_ptr<Backend> make_cuda_backend(const BackendOptions& /*options*/,
                                           const CudaShare& /*share*/) {
  fail("no CUDA backend: {}", why);
}

}  // namespace atl::compute
