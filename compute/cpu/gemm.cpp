#include "compute/cpu/gemm.hpp"

#include "compute/cpu/one_dnn_gemm.hpp"
#include "compute/cpu/panel_gemm.hpp"

namespace atl::compute {

std::unique_ptr<Gemm> make_gemm(DType dtype, int num_threads) {
  const CpuIsa isa = cpu_isa();
  // oneDNN's rows depend on their number on CPUs without AVX-512, and it multiplies 16 bits there
  // and float16 everywhere as float32, in twice the memory.
  const bool one_dnn = (dtype == DType::float32 && isa >= CpuIsa::avx512) ||
                       (dtype == DType::bfloat16 && isa >= CpuIsa::avx512_bf16);
  if (one_dnn) return std::make_unique<OneDnnGemm>(dtype, num_threads);
  return std::make_unique<PanelGemm>(dtype, num_threads);
}

}  // namespace atl::compute
