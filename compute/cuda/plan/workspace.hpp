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

/// Of latent attention; see LatentHeads.
struct LatentWorkspace {
  void* projected = nullptr;      // [attention's rows, queries' latent and what is kept]
  void* queries = nullptr;        // [attention's rows, queries' latent], normalised
  void* absorbed = nullptr;       // [latent_rows_at_once, heads, latent and rope]
  void* outputs = nullptr;        // [latent_rows_at_once, heads, latent]
  void* latents = nullptr;        // [latents_at_once, latent], of a context
  void* k_rows = nullptr;         // [latents_at_once, heads at once, head_dim - rope]
  void* v_rows = nullptr;         // [latents_at_once, heads at once, values_dim]
  void* keys = nullptr;           // [heads at once, positions, head_dim]
  void* values = nullptr;         // [heads at once, positions, values_dim]
  std::int32_t* zeros = nullptr;  // [attention's rows]: expanded keys are one page of one sequence
};

/// Elements of a row that the normed row is projected to: queries, or their latent, with keys and
/// values, or what is kept of latents.
std::int64_t projected_width(const BackendOptions& options);

/// What operations on one stream share, one after the other: the compute stream, but for what is
/// said to be the pack stream's.
struct Workspace {
  Workspace() = default;
  Workspace(const BackendOptions& options, Arena& arena);

  int mlp_rows = 0;            // rows of an MLP at once
  int vocab_rows = 0;          // rows of logits at once
  void* kv_rows = nullptr;     // [T, keys and values], on their way from or to the host
  void* out = nullptr;         // [T, H]
  float* qkv_sums = nullptr;   // [attention's rows, qkv], where a bias is added before rounding
  float* out_sums = nullptr;   // [attention's rows, H], likewise
  float* down_sums = nullptr;  // [mlp_rows, H], likewise
  LatentWorkspace latent;
  void* unpacked = nullptr;        // a matrix that is kept as codes, for the product at hand
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
