#pragma once
// The weights' way to the device.

#include "compute/backend.hpp"
#include "compute/cuda/plan/weight_memory.hpp"

namespace atl::compute::cuda {

class CudaWeights : public WeightMemory {
 public:
  using WeightMemory::WeightMemory;

  /// Copies one weight, already checked, as elements of options.dtype.
  void load(const BackendOptions& options, const WeightInfo& info, int local_expert,
            const void* data);
  /// Fills the tables of angles and of the places of experts.
  void finish(const BackendOptions& options);
};

}  // namespace atl::compute::cuda
