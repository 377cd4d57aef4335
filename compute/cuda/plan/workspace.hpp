#pragma once
// The memory that operations of all chunks share on the device.

#include <cstddef>
#include <cstdint>

#include "compute/backend.hpp"
#include "compute/cuda/plan/arena.hpp"

namespace atl::compute::cuda {

/// Of what cuBLASLt's algorithms may use beside their operands.
inline constexpr std::size_t gemm_workspace_bytes = std::size_t{32} << 20;

/// Rows are sorted into groups in so many pieces at most, each with a count for every group.
inline constexpr int max_group_tiles = 128;
constexpr std::int64_t group_scratch_ints(int num_groups) {
  return std::int64_t{max_group_tiles} * num_groups;
}

/// What operations on one stream share, one after the other: the compute stream, but for what is
/// said to be the pack stream's.
struct Workspace {
  Workspace() = default;
  Workspace(const BackendOptions& options, Arena& arena);

  int mlp_rows = 0;                // rows of an MLP at once
  int vocab_rows = 0;              // rows of logits at once
  void* kv_rows = nullptr;         // [2, T, kv_heads * head_dim], on their way from or to the host
  void* out = nullptr;             // [T, H]
  float* qkv_sums = nullptr;       // [attention's rows, qkv], where a bias is added before rounding
  void* heads = nullptr;           // [rows, heads * head_dim] of all ranks that share attention
  void* inner = nullptr;           // [mlp_rows, widest MLP]
  float* inner_float = nullptr;    // [mlp_rows, widest MLP]
  void* gathered = nullptr;        // [mlp_rows, H], short runs of one expert's rows
  void* results = nullptr;         // [mlp_rows, H]
  void* head = nullptr;            // [vocab_rows, H]
  float* logits = nullptr;         // [vocab_rows, vocab]
  LogitChange* changes = nullptr;  // [vocab], of some rows of logits
  float* router = nullptr;         // [T, num_experts]
  std::int32_t* route_scratch = nullptr;
  std::int32_t* forward_scratch = nullptr;  // pack stream, with BackendOptions::across
  float* attention = nullptr;
  float* attention_totals = nullptr;
  void* gemm = nullptr;
  std::int32_t* pages = nullptr;  // [most_pages]
};

}  // namespace atl::compute::cuda
