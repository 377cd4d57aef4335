#pragma once
// What a rank's backend takes of memory, added up without a device and without a weight.

#include <cstdint>

#include "compute/backend.hpp"

namespace atl::compute {

/// Bytes of one rank, by kind.
struct MemoryPlan {
  std::int64_t weights = 0;
  std::int64_t kv_cache = 0;
  std::int64_t workspace = 0;  ///< what operations share: scratch, inner rows, the head's logits
  std::int64_t chunks = 0;     ///< of all chunks, without the next
  std::int64_t received = 0;   ///< of all chunks: `receive_rows` rows from other ranks each, as
                               ///< many results, and what is forwarded inside a node

  std::int64_t buffers() const { return workspace + chunks + received; }
  std::int64_t total() const { return weights + kv_cache + buffers(); }
};

/// Host memory of the CPU backend, with weights packed as expected_cpu_isa() wants them.
MemoryPlan cpu_memory_plan(const BackendOptions& options);

/// Of these, the KV cache alone.
std::int64_t cpu_kv_bytes(const BackendOptions& options);

/// Device memory of the CUDA backend, which need not be compiled in. Throws Error where it cannot
/// run this model.
MemoryPlan cuda_memory_plan(const BackendOptions& options);

}  // namespace atl::compute
