#include "compute/cpu/gemm.hpp"

#include "compute/cpu/one_dnn_gemm.hpp"
#include "compute/cpu/panel_gemm.hpp"
#include "compute/error.hpp"

namespace atl::compute {

std::unique_ptr<Gemm> make_gemm(DType dtype, int num_threads, CpuIsa isa) {
  if (dtype == DType::bfloat16 && isa == CpuIsa::avx512_amx) {
    require(OneDnnGemm::limit_to_amx(),
            "cannot multiply with {} (oneDNN has not got it); choose --isa avx512_bf16, or another "
            "build of oneDNN",
            name_of(isa));
    return std::make_unique<OneDnnGemm>(dtype, num_threads, isa);
  }
  return std::make_unique<PanelGemm>(dtype, num_threads, isa);
}

PackedWeight Gemm::pack_codes(const HostTensor& /*weight*/) {
  fail("internal: {} take no codes", description());
}

std::int64_t Gemm::bytes_of_codes(int /*n*/, int /*k*/, const Coding& /*coding*/) const {
  fail("internal: {} take no codes", description());
}

bool wants_own_gemms(const ModelShape& shape) {
  return !shape.codings.empty() || shape.qkv_bias || shape.output_bias || shape.expert_bias ||
         shape.latent.used() || shape.activation == Activation::swiglu_clamped;
}

std::unique_ptr<Gemm> make_gemm(const ModelShape& shape, DType dtype, int num_threads, CpuIsa isa) {
  if (wants_own_gemms(shape)) return std::make_unique<PanelGemm>(dtype, num_threads, isa);
  return make_gemm(dtype, num_threads, isa);
}

}  // namespace atl::compute
