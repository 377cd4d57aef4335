#pragma once
// Where each rank computes: which backend, which GPU, and how much of its memory.

#include <memory>
#include <optional>
#include <string>

#include "app/backend_kind.hpp"
#include "comm/communicator.hpp"
#include "comm/launcher.hpp"
#include "comm/topology.hpp"
#include "compute/backend.hpp"
#include "compute/cuda/backend.hpp"

namespace atl {

/// What choose_backend decided, alike on all ranks but for the device.
struct BackendChoice {
  bool cuda = false;
  compute::CudaShare share;  ///< where cuda
  /// Where cuda: the kinds of all ranks' devices as CudaDevice::kind, with commas, and what else of
  /// them decides the bits of results.
  std::string devices;

  std::string name() const {
    return std::string(name_of(cuda ? BackendKind::cuda : BackendKind::cpu));
  }
};

/// Why GPUs that are there may not be used, as "CUDA_VISIBLE_DEVICES= hides all GPUs"; empty where
/// nothing hides them. A batch system or container hides them so from jobs that were given none.
std::string why_gpus_are_hidden(const comm::launcher::Variables& variables);

/// Before MPI_Init, where the backend may be CUDA.
void choose_device_early(std::optional<BackendKind> wanted);

/// Collective. With nothing `wanted` it is CUDA where every rank sees a device. Ranks
/// of a node take its devices in turn by their local rank; several may share one, each with an
/// equal part of its memory. Throws Error when what is wanted cannot be had.
BackendChoice choose_backend(const comm::Communicator& world, const comm::Topology& topology,
                             std::optional<BackendKind> wanted);

/// Throws Error where the options do not fit the device.
std::unique_ptr<compute::Backend> make_backend(const BackendChoice& choice,
                                               const compute::BackendOptions& options);

}  // namespace atl
