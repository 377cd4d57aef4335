#pragma once
// Which models the CUDA kernels take.

#include "compute/types.hpp"

namespace atl::compute::cuda {

/// What the kernels take, beside max_head_dim and key_block. Wider models need the CPU backend.
inline constexpr int max_experts = 512;
inline constexpr int max_top_k = 32;

/// Throws Error where the kernels cannot run this model with pages of page_tokens; to be called
/// once, before anything is launched. The kernels do not check again.
void check_shape(const ModelShape& shape, int page_tokens);

}  // namespace atl::compute::cuda
