#include "compute/cpu/kernels.hpp"

namespace atl::compute {

const Kernels& kernels_for(DType dtype, CpuIsa isa) {
  switch (isa) {
    case CpuIsa::avx512_amx:  // which has matrix multiplications only
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
