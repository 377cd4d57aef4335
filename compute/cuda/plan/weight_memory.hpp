#pragma once
// Where a rank's weights lie on the device.

#include <cstdint>
#include <map>
#include <vector>

#include "compute/backend.hpp"
#include "compute/cuda/plan/arena.hpp"

namespace atl::compute::cuda {

/// A matrix that is kept as codes.
struct CodedRows {
  const void* codes = nullptr;   // [rows, coding.row_bytes(cols)]
  const void* scales = nullptr;  // [rows, coding.groups(cols)]
  Coding coding;
  DType rounded = DType::bfloat16;  // what elements are rounded to before they are an operand
  std::int64_t rows = 0;
  std::int64_t cols = 0;
};

/// A dense MLP or an expert; `gate` is null for GELU. Matrices [out, in].
struct CudaMlp {
  void* up = nullptr;
  void* gate = nullptr;
  void* down = nullptr;
  // Of some models' experts; null elsewhere:
  float* up_bias = nullptr;
  float* gate_bias = nullptr;
  float* down_bias = nullptr;
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
  float* output_bias = nullptr;
  float* sinks = nullptr;  // [heads]
  float* router_bias = nullptr;
  float* selection_bias = nullptr;
  CudaMlp shared;
  void* shared_router = nullptr;  // [1, H]
  float* q_latent_norm = nullptr;
  float* kv_latent_norm = nullptr;
  void* q_up = nullptr;
  void* k_up = nullptr;  // [heads * (head_dim - rope), latent]
  void* v_up = nullptr;  // [heads * values_dim, latent]
};

/// Cosines, then sines, of positions.
struct CudaAngles {
  float* values = nullptr;  // [num_positions, dims]
  int dims = 0;             // that turn
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
  float** vector_place(const WeightInfo& info, int local_expert);

  void take_codes(const WeightInfo& info, void*& place, Arena& arena);

  void* embedding = nullptr;  // [vocab, H]
  void* lm_head = nullptr;    // [vocab, H]
  float* final_norm = nullptr;
  std::vector<CudaAngles> angles;          // as shape.ropes
  std::map<const void*, CodedRows> codes;  // of matrices kept so, by their pointers
  std::vector<CudaPlaces> places;          // as options.part.places
  std::vector<CudaLayer> layers;
};

}  // namespace atl::compute::cuda
