#include "compute/cpu/gemm.hpp"

#include "compute/cpu/one_dnn_gemm.hpp"
#include "compute/cpu/panel_gemm.hpp"
#include "compute/error.hpp"

namespace atl::compute {

std::unique_ptr<Gemm> make_gemm(DType dtype, int num_threads) {
  if (dtype == DType::bfloat16 && cpu_isa() == CpuIsa::avx512_amx) {
    require(OneDnnGemm::limit_to_amx(),
            "cannot multiply with {} (oneDNN has not got it); choose --isa avx512_bf16, or another "
            "build of oneDNN",
            name_of(cpu_isa()));
    return std::make_unique<OneDnnGemm>(dtype, num_threads, cpu_isa());
  }
  return std::make_unique<PanelGemm>(dtype, num_threads);
}

}  // namespace atl::compute
