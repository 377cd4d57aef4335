// Finding and opening a GPU.

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdlib>

#include "compute/cuda/backend.hpp"
#include "compute/cuda/error.hpp"
#include "compute/cuda/gemm.hpp"
#include "compute/cuda/kernels.hpp"
#include "compute/cuda/wgmma.hpp"
#include "compute/error.hpp"

namespace atl::compute {

namespace {

constexpr int oldest_major = 8;  // bfloat16 matrix units came with compute capability 8.0

std::string hex(const cudaUUID_t& uuid) {
  std::string text;
  for (const char byte : uuid.bytes)
    text += fmt::format("{:02x}", static_cast<unsigned char>(byte));
  return text;
}

}  // namespace

CudaDevices find_cuda_devices() {
  CudaDevices devices;
  const cudaError_t code = cudaGetDeviceCount(&devices.count);
  if (code == cudaSuccess && devices.count > 0) return devices;
  devices.count = 0;
  const char* reason = code == cudaSuccess ? "the driver lists none" : cudaGetErrorString(code);
  cudaGetLastError();
  devices.why_none = fmt::format(
      "no CUDA device is visible ({}); check nvidia-smi and CUDA_VISIBLE_DEVICES, or use --backend "
      "cpu",
      reason);
  return devices;
}

void choose_cuda_device(std::optional<int> local_rank) {
  // Each stream its own queue of the hardware's, also beside those of MPI: two that share one wait
  // for each other.
  setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", /*overwrite=*/0);
  const int count = find_cuda_devices().count;
  if (count == 0 || !local_rank) return;
  if (cudaSetDevice(*local_rank % count) == cudaSuccess) cudaFree(nullptr);  // makes the context
  cudaGetLastError();
}

CudaDevice open_cuda_device(int index) {
  const CudaDevices devices = find_cuda_devices();
  require(devices.count > 0, "{}", devices.why_none);
  require(index >= 0 && index < devices.count, "there is no CUDA device {} (only {} visible)",
          index, devices.count);
  const cuda::Doing doing("opening the device");
  cuda::name_device(fmt::format("device {}", index));
  cudaDeviceProp properties{};
  cuda::check(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties");
  require(
      properties.major >= oldest_major,
      "device {} ({}) has compute capability {}.{}, and Atoll needs 8.0 (bfloat16 matrix units) or "
      "newer; use another device or --backend cpu",
      index, properties.name, properties.major, properties.minor);
  cuda::name_device(fmt::format("device {} ({})", index, properties.name));
  cuda::check(cudaSetDevice(index), "cudaSetDevice");
  int architecture = 0;
  const cudaError_t code = cuda::find_kernels(architecture);
  if (code == cudaErrorNoKernelImageForDevice || code == cudaErrorInvalidDeviceFunction) {
    cudaGetLastError();
    fail(
        "device {} ({}) has compute capability {}.{}, and this program's kernels were built for "
        "{}; "
        "build with -DATOLL_CUDA_ARCHITECTURES={}{} added, or use another device or --backend cpu",
        index, properties.name, properties.major, properties.minor, cuda::built_architectures(),
        properties.major, properties.minor);
  }
  cuda::check(code, "cudaFuncGetAttributes");
  CudaDevice device;
  device.index = index;
  device.name = properties.name;
  device.kind = fmt::format("{} (kernels for sm_{}, {})", properties.name, architecture,
                            cuda::CudaGemm::library());
  device.id = hex(properties.uuid);
  device.free_bytes = free_cuda_bytes();
  device.why_no_wgmma = cuda::why_no_chosen_wgmma();
  return device;
}

std::int64_t free_cuda_bytes() {
  std::size_t free = 0;
  std::size_t total = 0;
  cuda::check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return static_cast<std::int64_t>(free);
}

}  // namespace atl::compute
