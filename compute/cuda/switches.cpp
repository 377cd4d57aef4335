#include "compute/cuda/switches.hpp"

#include <cstdlib>
#include <string_view>

namespace atl::compute::cuda {

Switches read_switches() {
  const auto is_on = [](const char* name) {
    const char* value = std::getenv(name);
    return value == nullptr || std::string_view(value) != "0";
  };
  Switches switches;
  switches.cold_trials = is_on("ATOLL_CUDA_COLD_TRIALS");
  switches.merge_stream = is_on("ATOLL_CUDA_MERGE_STREAM");
  switches.gather_kernel = is_on("ATOLL_CUDA_GATHER_KERNEL");
  switches.gather_by_cost = is_on("ATOLL_CUDA_GATHER_BY_COST");
  return switches;
}

}  // namespace atl::compute::cuda
