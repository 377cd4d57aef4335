#include "compute/cpu/gemm.hpp"

#include "compute/cpu/one_dnn_gemm.hpp"
#include "compute/cpu/panel_gemm.hpp"

namespace atl::compute {

std::unique_ptr<Gemm> make_gemm(DType dtype, int num_threads) {
  // Tiles are the one thing that oneDNN multiplies by and our panels do not.
  if (dtype == DType::bfloat16 && cpu_isa() == CpuIsa::avx512_amx) {
    return std::make_unique<OneDnnGemm>(dtype, num_threads);
  }
  return std::make_unique<PanelGemm>(dtype, num_threads);
}

}  // namespace atl::compute
