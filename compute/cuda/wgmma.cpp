#include "compute/cuda/wgmma.hpp"

#include <fmt/format.h>

#include <cstdlib>
#include <string_view>

#include "compute/cuda/error.hpp"
#include "compute/cuda/kernels.hpp"
#include "compute/cuda/memory.hpp"
#include "compute/error.hpp"

namespace atl::compute::cuda {

int wrong_wgmma_answers() {
  // Kernels reach pinned memory of the host; none of the device's is taken before it is planned.
  const PinnedBuffer answer(sizeof(int));
  int& wrong = *answer.as<int>();
  wrong = 0;
  ask_about_wgmma(nullptr, &wrong);
  check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  return wrong;
}

std::string why_no_wgmma() {
  int device = 0;
  int major = 0;
  int minor = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
        "cudaDeviceGetAttribute");
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device),
        "cudaDeviceGetAttribute");
  if (major != 9 || minor != 0) return "only compute capability 9.0 has wgmma";
  const int wrong = wrong_wgmma_answers();
  if (wrong == 0) return "";
  return wrong < 0 ? fmt::format("built for {}, and wgmma needs 90a", built_architectures())
                   : fmt::format("wgmma answered otherwise than expected {} times", wrong);
}

std::string why_no_chosen_wgmma() {
  const char* given = std::getenv("ATOLL_ATTENTION");
  const std::string_view wanted = given == nullptr ? "" : given;
  require(wanted.empty() || wanted == "mma" || wanted == "wgmma",
          "ATOLL_ATTENTION is \"{}\"; it may be mma or wgmma", wanted);
  if (wanted == "mma") return "ATOLL_ATTENTION is mma";
  std::string why = why_no_wgmma();
  require(why.empty() || wanted.empty(), "ATOLL_ATTENTION is wgmma, and {}; unset it", why);
  return why;
}

}  // namespace atl::compute::cuda
