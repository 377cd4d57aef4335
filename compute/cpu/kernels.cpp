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

std::int64_t attend_state_floats(const KvLayout& layout, int num_queries) {
  const std::int64_t n = num_queries;
  // Outputs, per-query sums (16 lanes), maxima (rounded up).
  return n * layout.value_stride + n * 16 + (n + 15) / 16 * 16;
}

std::int64_t attend_scratch_floats(const KvLayout& layout, int num_queries) {
  // One block of scores, the sum of splits and the split at hand, queries.
  // Of latents also a panel of keys.
  const std::int64_t panel = layout.latent_width > 0 ? panel_tokens * layout.head_dim : 0;
  return 8 * panel_tokens + 2 * attend_state_floats(layout, num_queries) + panel +
         std::int64_t{num_queries} * ((layout.head_dim + 15) / 16 * 16);
}

}  // namespace atl::compute
