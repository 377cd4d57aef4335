#pragma once
// The memory that the CPU backend's operations share, one after the other.

#include <cstdint>

#include "compute/backend.hpp"
#include "compute/cpu/attention_plan.hpp"
#include "compute/cpu/memory.hpp"

namespace atl::compute {

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
  AlignedBuffer rope_coarse;     // see RopeTables, [max_positions / 64 + 1]
  AlignedBuffer rope_fine;       // [64]
  int vocab_rows = 0;
  std::int64_t scratch_floats = 0;  // per thread
  AttendLimits attend;

 private:
  /// What only ranks that share attention need.
  void take_shared(const BackendOptions& options, HostArena& arena);
};

}  // namespace atl::compute
