#pragma once
// The weights' way to the device.

#include <cstddef>
#include <cstdint>
#include <span>

#include "compute/backend.hpp"
#include "compute/cuda/plan/weight_memory.hpp"

namespace atl::compute::cuda {

class CudaWeights : public WeightMemory {
 public:
  using WeightMemory::WeightMemory;

  /// Copies one weight, already checked, as elements of options.dtype; a vector as float32.
  void load(const BackendOptions& options, const WeightInfo& info, int local_expert,
            const void* data);
  /// The same of one that is kept as codes.
  void load_codes(const WeightInfo& info, int local_expert, const HostTensor& tensor);
  /// Fills the tables of angles and of the places of experts.
  void finish(const BackendOptions& options);

  /// An expert's matrices and vectors, one behind the other.
  std::int64_t expert_bytes(const BackendOptions& options, int layer) const;
  void read_expert(const BackendOptions& options, int layer, int local_expert,
                   std::span<std::byte> bytes) const;
  void write_expert(const BackendOptions& options, int layer, int local_expert,
                    std::span<const std::byte> bytes);
  /// Of layers of one kind, as options.part says now.
  void load_places(const BackendOptions& options, std::size_t kind);

 private:
  template <class Visit>
  void for_parts(const BackendOptions& options, int layer, int local_expert,
                 const Visit& visit) const;
};

}  // namespace atl::compute::cuda
