#pragma once
// The CUDA backend as the other rooms see it; no CUDA header is needed to include this. A build
// without CUDA has the same functions: they find no device and say why.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "compute/backend.hpp"

namespace atl::compute {

/// GPUs that this process sees.
struct CudaDevices {
  int count = 0;
  std::string why_none;  ///< where count is 0: the reason, and what to do
};
CudaDevices find_cuda_devices();

/// One GPU, opened by this process.
struct CudaDevice {
  int index = 0;
  std::string name;             ///< e.g. "NVIDIA H100 80GB HBM3"
  std::string kind;             ///< the name, and what else decides the bits of results
  std::string id;               ///< equal for all processes of this host that use the same GPU
  std::int64_t free_bytes = 0;  ///< once this process had its own context
  /// Why attention does without warpgroups (wgmma); empty: it takes them, where it has a kernel for
  /// the model. All ranks of a run must do alike.
  std::string why_no_wgmma = "not asked";
};

/// To be called before MPI_Init, since MPI libraries take resources of the device that is chosen
/// then: chooses the one of this process among those of its node, and creates its context. Without
/// a number it only says to CUDA how this program uses it. What cannot be had is told by
/// open_cuda_device().
void choose_cuda_device(std::optional<int> local_rank);
/// Makes the device this process's own one and creates its context. Throws Error when the device
/// cannot be used (none, older than compute capability 8.0).
CudaDevice open_cuda_device(int index);
/// Free memory of the device that this process has opened, now.
std::int64_t free_cuda_bytes();

/// A rank's part of a GPU.
struct CudaShare {
  CudaDevice device;
  int num_ranks = 1;              ///< ranks that use this GPU
  std::int64_t memory_bytes = 0;  ///< this rank may take so much; 0: what is free
};

/// The CUDA backend: cuBLASLt GEMMs and our own kernels on several streams. Allocates weights and
/// KV cache at once; throws Error with a table when they do not fit into the share.
std::unique_ptr<Backend> make_cuda_backend(const BackendOptions& options, const CudaShare& share);

}  // namespace atl::compute
