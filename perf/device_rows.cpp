#include "comm/launcher.hpp"
#include "compute/cuda/backend.hpp"
#include "compute/cuda/memory.hpp"
#include "perf/gpu_ceilings.hpp"
#include "perf/rows_place.hpp"

namespace atl::perf {

RowsPlace open_rows_place() {
  const compute::CudaDevices devices = compute::find_cuda_devices();
  if (devices.count == 0) return {devices.why_none, nullptr, {}};
  compute::open_cuda_device(comm::launcher::announced_local_rank() % devices.count);
  const auto rate = [](bool tiny) {
    return gpu_bench::copy_rate(tiny ? std::size_t{1} << 16 : std::size_t{1} << 28);
  };
  return {{}, std::make_shared<compute::cuda::CudaMemory>(), rate};
}

}  // namespace atl::perf
