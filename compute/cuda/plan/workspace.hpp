#pragma once
// The memory that operations of all chunks share on the device.

#include <cstddef>
#include <cstdint>

#include "compute/backend.hpp"
#include "compute/cuda/plan/arena.hpp"

namespace atl::compute::cuda {

/// Of what cuBLASLt's algorithms may use beside their operands.
inline constexpr std::size_t gemm_workspace_bytes = std::size_t{32} << 20;

/// Routing counts its rows in so many pieces at most, each with a count for every expert.
inline constexpr int max_route_tiles = 128;
constexpr std::int64_t route_scratch_ints(int num_experts) {
  return std::int64_t{max_route_tiles} * num_experts;
}

/// What operations on the compute stream share, one after the other.
struct Workspace {
  Workspace() = default;
  Workspace(const BackendOptions& options, Arena& arena);

  int mlp_rows = 0;              // rows of an MLP at once
  int vocab_rows = 0;            // rows of logits at once
  void* kv_rows = nullptr;       // [2, T, kv_heads * head_dim], on their way from or to the host
  void* out = nullptr;           // [T, H]
  void* inner = nullptr;         // [mlp_rows, widest MLP]
  float* inner_float = nullptr;  // [mlp_rows, widest MLP]
  void* gathered = nullptr;      // [mlp_rows, H], short runs of one expert's rows
  void* results = nullptr;       // [mlp_rows, H]
  void* head = nullptr;          // [vocab_rows, H]
  float* logits = nullptr;       // [vocab_rows, vocab]
  float* router = nullptr;       // [T, num_experts]
  std::int32_t* route_scratch = nullptr;
  float* attention = nullptr;
  void* gemm = nullptr;
  std::int32_t* pages = nullptr;  // [most_pages]
};

}  // namespace atl::compute::cuda
