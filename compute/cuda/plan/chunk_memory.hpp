#pragma once
// A chunk's memory on the device.

#include <cstddef>
#include <cstdint>

#include "compute/backend.hpp"
#include "compute/cuda/plan/arena.hpp"
#include "compute/forward_room.hpp"

namespace atl::compute::cuda {

/// What ranks that share attention exchange, see Chunk; nothing on a rank alone.
struct SharedMemory {
  SharedMemory() = default;
  SharedMemory(const BackendOptions& options, Arena& arena);

  void* normed = nullptr;
  float* head_sums = nullptr;
  void* heads_send = nullptr;  // by OutputCut::columns and either it is in heads_recv
  void* heads_recv = nullptr;
  void* output_send = nullptr;
  void* output_recv = nullptr;
};

/// A chunk's own memory on the device: what survives from one operation to the next.
struct ChunkMemory {
  ChunkMemory() = default;
  ChunkMemory(const BackendOptions& options, Arena& arena);

  float* x = nullptr;      // [T, H]
  void* normed = nullptr;  // [T, H], x after a norm, see CudaChunk::normed_with
  /// [attention's rows, q, k and v], or of latents q and what is kept; where queries have a latent
  /// too, q of all rows comes first.
  void* qkv = nullptr;
  void* context = nullptr;  // [T, heads * value_dim] of a rank alone
  SharedMemory shared;
  void* send = nullptr;             // [T * top_k, H], unless across: see ForwardMemory
  void* combined = nullptr;         // [T * top_k, H], likewise
  std::int32_t* experts = nullptr;  // [T, top_k]
  float* weights = nullptr;         // [T, top_k]
  std::int32_t* chosen = nullptr;   // [T, top_k], replicas of the experts
  std::int32_t* slots = nullptr;    // [T, top_k], see RouteArgs
  std::int32_t* counts = nullptr;   // most_counts()
  std::byte* inputs = nullptr;      // what an upload brings
  std::byte* head = nullptr;        // what an upload for the head brings
  ScoredToken* logprobs = nullptr;  // [T]
  SampledToken* sampled = nullptr;  // [most_outcomes()]

  // With BackendOptions::across:
  void* across_send = nullptr;    // [T * min(top_k, nodes)], rows with tails
  void* across_return = nullptr;  // [T * top_k, H]
  std::int32_t* sent = nullptr;   // [T, top_k], row in across_send
};

/// What rows take that go through a rank's node, with BackendOptions::across; else nothing.
struct ForwardMemory {
  ForwardMemory() = default;
  ForwardMemory(const BackendOptions& options, Arena& arena, const ForwardRoom& room);

  void* send = nullptr;             // [forwarded, H]
  void* combined = nullptr;         // [forwarded, H]
  void* recv = nullptr;             // [arrived], rows with tails
  void* done = nullptr;             // [returned, H]
  std::int32_t* slots = nullptr;    // [own rows + arrived, top_k], row in `send`, or -1
  std::int32_t* returns = nullptr;  // [own rows + arrived], row where results begin
};
/// What ranks that share experts exchange, see Chunk; nothing where this one does not.
struct ExpertMemory {
  ExpertMemory() = default;
  ExpertMemory(const BackendOptions& options, Arena& arena, const ExpertRoom& room);

  void* rows = nullptr;
  void* inner = nullptr;
  void* send = nullptr;
  void* recv = nullptr;
};

/// From the start; nothing without BackendOptions::across.
ForwardRoom first_forward_room(const BackendOptions& options);

/// Counts of one route, at most: of places, and twice of nodes.
int most_counts(const BackendOptions& options);

/// Most bytes of one upload of a chunk's inputs.
std::size_t input_bytes(const BackendOptions& options);
/// Most bytes of one upload for the head: for each row what is done with it, and which it is.
std::size_t head_bytes(const BackendOptions& options);
/// Tokens that sampling of a chunk can give.
std::int64_t most_outcomes(const BackendOptions& options);

/// Each part of an upload begins at a multiple of 16 bytes.
constexpr std::size_t upload_aligned(std::size_t bytes) {
  return (bytes + 15) / 16 * 16;
}

/// Of one row between ranks.
std::int64_t row_bytes(const BackendOptions& options);
/// Of both buffers for received rows together; each is half of it.
std::int64_t receive_bytes(std::int64_t rows, std::int64_t row_bytes);
/// Of the inner rows of this rank's experts, where as many rows come from other ranks and this one
/// forwards so many; 0 unless options.split_experts.
std::int64_t inner_bytes(const BackendOptions& options, std::int64_t receive_rows,
                         std::int64_t forwarded_rows);

}  // namespace atl::compute::cuda
