#pragma once
// Attention by warpgroups (Hopper's wgmma) as the backend sees it: where it may be taken, and how.

#include <cuda_runtime_api.h>

#include <string>

namespace atl::compute::cuda {

struct AttentionArgs;

/// Why attention may not be computed by warpgroups on the current device: it has another
/// architecture, the program was not compiled for it, or it answered otherwise than the kernels
/// expect when it was asked how the instructions work. Empty where it may. Waits for the device.
std::string why_no_wgmma();
/// The same after ATOLL_ATTENTION in the environment: mma refuses, wgmma throws Error where the
/// device cannot. Throws Error for other values.
std::string why_no_chosen_wgmma();

/// The tiles of attention() by warpgroups, for elements of type T: its merges follow.
template <class T>
void attention_group_tiles(cudaStream_t stream, const AttentionArgs& args);

/// Adds to `wrong`, which the device can reach, how many of its answers are others than expected;
/// -1 instead where the kernels were not compiled for wgmma.
void ask_about_wgmma(cudaStream_t stream, int* wrong);
/// Asks the current device, and waits for it.
int wrong_wgmma_answers();

}  // namespace atl::compute::cuda
