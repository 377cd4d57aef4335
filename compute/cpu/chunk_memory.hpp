#pragma once
// A chunk's memory on the CPU.

#include <cstdint>
#include <vector>

#include "compute/backend.hpp"
#include "compute/cpu/memory.hpp"
#include "compute/cpu/row_order.hpp"
#include "compute/forward_room.hpp"

namespace atl::compute {

/// What ranks that share attention exchange, see Chunk; nothing on a rank alone.
struct CpuSharedMemory {
  CpuSharedMemory() = default;
  CpuSharedMemory(const BackendOptions& options, HostArena& arena);

  AlignedBuffer normed;
  AlignedBuffer head_sums;
  AlignedBuffer heads_send;  // by OutputCut::columns and either it is in heads_recv
  AlignedBuffer heads_recv;
  AlignedBuffer output_send;
  AlignedBuffer output_recv;
};

/// What survives from one operation to the next, but for rows from other ranks.
struct CpuChunkMemory {
  CpuChunkMemory() = default;
  CpuChunkMemory(const BackendOptions& options, HostArena& arena);

  AlignedBuffer x;        // [max_tokens, H], float32
  AlignedBuffer qkv;      // [attention's rows, (heads + 2 kv_heads) * head_dim]
  AlignedBuffer context;  // [max_tokens, heads * head_dim] of a rank alone
  CpuSharedMemory shared;
  AlignedBuffer send;                 // [max_tokens * top_k, H]
  AlignedBuffer combined;             // [max_tokens * top_k, H]
  std::vector<float> router_logits;   // [max_tokens, num_experts]
  std::vector<std::int32_t> experts;  // [max_tokens, top_k], chosen, falling weight
  std::vector<float> weights;         // [max_tokens, top_k]
  std::vector<float> given_up;        // [max_tokens], see Backend::save_choices
  RowOrder order;                     // where these rows go

  // With BackendOptions::across:
  AlignedBuffer across_send;    // [max_tokens * min(top_k, nodes)], rows with tails
  AlignedBuffer across_return;  // [max_tokens * top_k, H]
};

/// What forwarded rows take beside dispatch_send and combine_recv.
struct CpuForwardMemory {
  CpuForwardMemory() = default;
  CpuForwardMemory(const BackendOptions& options, HostArena& arena, const ForwardRoom& room);

  AlignedBuffer recv;  // [arrived], rows with tails
  AlignedBuffer done;  // [returned, H]
  ForwardOrder order;  // of own rows and those that arrived
};

/// What ranks that share experts exchange, see Chunk.
struct CpuExpertMemory {
  CpuExpertMemory() = default;
  CpuExpertMemory(const BackendOptions& options, HostArena& arena, const ExpertRoom& room);

  AlignedBuffer rows;
  AlignedBuffer inner;
  AlignedBuffer send;
  AlignedBuffer recv;
};

/// Rows from other ranks that a chunk has room for once `rows` of them have come, where there was
/// room for `before`.
std::int64_t grown_receive_capacity(std::int64_t rows, std::int64_t before);
/// Bytes of these rows, and of as many results.
std::int64_t receive_bytes(const BackendOptions& options, std::int64_t capacity);

}  // namespace atl::compute
