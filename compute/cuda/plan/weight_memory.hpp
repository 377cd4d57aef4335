#pragma once
// Where a rank's weights lie on the device.

#include <cstdint>
#include <vector>

#include "compute/backend.hpp"
#include "compute/cuda/plan/arena.hpp"

namespace atl::compute::cuda {

/// A dense MLP or an expert; `gate` is null for GELU. Matrices [out, in].
struct CudaMlp {
  void* up = nullptr;
  void* gate = nullptr;
  void* down = nullptr;
};

/// One layer's weights. Norms are float32.
struct CudaLayer {
  float* attention_norm = nullptr;
  float* ffn_norm = nullptr;
  float* q_norm = nullptr;
  float* k_norm = nullptr;
  void* qkv = nullptr;
  void* o = nullptr;
  void* router = nullptr;
  CudaMlp dense;
  std::vector<CudaMlp> experts;  // by local number
  // What only some models have; null elsewhere:
  float* qkv_bias = nullptr;
  float* router_bias = nullptr;
  float* selection_bias = nullptr;
  CudaMlp shared;
  void* shared_router = nullptr;  // [1, H]
};

/// Where the experts of layers of one kind are, see ExpertPlaces.
struct CudaPlaces {
  std::int32_t* first_of_expert = nullptr;  // [num_experts + 1]
  ReplicaPlace* replicas = nullptr;         // [places]
  std::int32_t* first_of_node = nullptr;    // [nodes + 1]

  ReplicaTable table() const { return {first_of_expert, replicas}; }
};

/// All weights of this rank, in place for the whole job, and tables beside them.
struct WeightMemory {
  WeightMemory() = default;
  WeightMemory(const BackendOptions& options, Arena& arena);

  /// Where the pointer to a matrix, or to a vector, is kept.
  void** matrix_place(const WeightInfo& info, int local_expert);
  float** vector_place(const WeightInfo& info);

  void* embedding = nullptr;  // [vocab, H]
  void* lm_head = nullptr;    // [vocab, H]
  float* final_norm = nullptr;
  float* angles = nullptr;  // [num_positions, dimensions that turn]
  int rope_dims = 0;
  std::vector<CudaPlaces> places;  // as options.part.places
  std::vector<CudaLayer> layers;
};

}  // namespace atl::compute::cuda
