#include "compute/cpu_kernels.hpp"

#include <dnnl.hpp>

#include "compute/error.hpp"

namespace atl::compute {

CpuIsa cpu_isa() {
  // oneDNN's sets are bit masks that include the sets they build on.
  const auto isa = static_cast<unsigned>(dnnl::get_effective_cpu_isa());
  const auto allows = [isa](dnnl::cpu_isa wanted) {
    const auto mask = static_cast<unsigned>(wanted);
    return (isa & mask) == mask;
  };
  require(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"),
          "cannot compute on this CPU (no AVX2 and FMA); use a machine with them");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512cd") && allows(dnnl::cpu_isa::avx512_core);
  if (!avx512) return CpuIsa::avx2;
  const bool bf16 = __builtin_cpu_supports("avx512bf16") && allows(dnnl::cpu_isa::avx512_core_bf16);
  return bf16 ? CpuIsa::avx512_bf16 : CpuIsa::avx512;
}

const Kernels& kernels_for(DType dtype, CpuIsa isa) {
  switch (isa) {
    case CpuIsa::avx512_bf16:
      return kernels_avx512_bf16(dtype);
    case CpuIsa::avx512:
      return kernels_avx512(dtype);
    case CpuIsa::avx2:
      break;
  }
  return kernels_avx2(dtype);
}

std::int64_t attend_scratch_floats(const KvLayout& layout, int num_queries) {
  const std::int64_t n = num_queries;
  const std::int64_t head = (layout.head_dim + 15) / 16 * 16;
  // Queries, outputs, per-query sums (16 lanes), maxima (rounded up), one block of scores.
  return n * head + n * layout.value_stride + n * 16 + (n + 15) / 16 * 16 + 8 * panel_tokens;
}

}  // namespace atl::compute
