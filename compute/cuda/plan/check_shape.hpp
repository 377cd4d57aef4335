#pragma once
// Which models the CUDA kernels take.

#include "compute/backend.hpp"

namespace atl::compute::cuda {

/// What the kernels take, beside max_head_dim and key_block. Wider models need the CPU backend.
inline constexpr int max_experts = 512;
inline constexpr int max_top_k = 32;
/// Places of a layer's experts, and twice the nodes: all are counted in a block's shared memory.
inline constexpr int max_groups = 1536;

/// Throws Error where the kernels cannot run this model with these places and pages; to be called
/// once, before anything is launched. The kernels do not check again.
void check_shape(const BackendOptions& options);

}  // namespace atl::compute::cuda
