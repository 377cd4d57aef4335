#pragma once
// The memory that the CPU backend's operations share, one after the other.

#include <cstdint>
#include <vector>

#include "compute/backend.hpp"
#include "compute/cpu/attention_plan.hpp"
#include "compute/cpu/memory.hpp"

namespace atl::compute {

/// Angles of positions, see kernels' RopeTables.
struct CpuRope {
  AlignedBuffer coarse;  // [max_positions / 64 + 1]
  AlignedBuffer fine;    // [64]
  int dims = 0;
};

/// What latent attention works with.
struct CpuLatentWork {
  AlignedBuffer latents;   // [attention's rows, queries' latent + what is kept], where there is one
  AlignedBuffer rows;      // [most_rows_at_once, widest]: expanded keys, absorbed queries
  AlignedBuffer expanded;  // [positions], keys and values of one head at a time, or of several
  AlignedBuffer queries;   // [latent_block_rows, heads, what is kept]
  AlignedBuffer outputs;   // [latent_block_rows, heads, latent]
  AlignedBuffer scratch;   // [threads, scratch_floats], float32
  std::int64_t positions = 0;  // expanded ones, of one head
  int heads_at_once = 1;
  std::int64_t scratch_floats = 0;
};

/// Rows that attend to latents at once.
inline constexpr int latent_block_rows = 64;

/// Row counts are whole tiles.
struct CpuWorkspace {
  CpuWorkspace() = default;
  CpuWorkspace(const BackendOptions& options, HostArena& arena);

  AlignedBuffer h;               // [max_tokens, H], normed rows
  AlignedBuffer heads;           // [attention's rows, heads * head_dim] of all ranks that share it
  AlignedBuffer mean_squares;    // [attention's rows, 2], float32, see RopeArgs; where it is shared
  AlignedBuffer inner;           // [most_rows_at_once, widest MLP]
  AlignedBuffer vocab;           // [vocab_rows, vocab], float32
  AlignedBuffer attend_scratch;  // [threads, scratch_floats], float32
  AlignedBuffer attend_partial;  // [attend.partial_floats], float32
  AlignedBuffer shared_out;      // [most_rows_at_once, H], of a shared expert that is weighted
  AlignedBuffer shared_weights;  // [max_tokens], float32: its logits
  AlignedBuffer choices;         // [threads, num_experts], float32
  std::vector<CpuRope> ropes;    // as ModelShape's
  CpuLatentWork latent;
  int vocab_rows = 0;
  std::int64_t scratch_floats = 0;   // per thread
  std::vector<AttendLimits> attend;  // by kind of attention

 private:
  /// What only ranks that share attention need.
  void take_shared(const BackendOptions& options, HostArena& arena);
  void take_attention(const BackendOptions& options, HostArena& arena);
  void take_latents(const BackendOptions& options, HostArena& arena);
  void take_ropes(const BackendOptions& options, HostArena& arena);
};

}  // namespace atl::compute
