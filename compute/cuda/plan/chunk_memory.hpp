#pragma once
// A chunk's memory on the device.

#include <cstddef>
#include <cstdint>

#include "compute/backend.hpp"
#include "compute/cuda/plan/arena.hpp"

namespace atl::compute::cuda {

/// A chunk's own memory on the device: what survives from one operation to the next.
struct ChunkMemory {
  ChunkMemory() = default;
  ChunkMemory(const BackendOptions& options, Arena& arena);

  float* x = nullptr;               // [T, H]
  void* normed = nullptr;           // [T, H], x after a norm, see CudaChunk::normed_with
  void* qkv = nullptr;              // [T, (heads + 2 kv_heads) * head_dim]
  void* context = nullptr;          // [T, heads * head_dim]
  void* send = nullptr;             // [T * top_k, H]
  void* combined = nullptr;         // [T * top_k, H]
  std::int32_t* experts = nullptr;  // [T, top_k]
  float* weights = nullptr;         // [T, top_k]
  std::int32_t* slots = nullptr;    // [T, top_k]
  std::int32_t* counts = nullptr;   // [num_experts], in sending order
  std::byte* inputs = nullptr;      // what an upload brings
  std::byte* head = nullptr;        // what an upload for the head brings
  float* logprobs = nullptr;        // [T]
  SampledToken* sampled = nullptr;  // [T]
};

/// Most bytes of one upload of a chunk's inputs.
std::size_t input_bytes(const BackendOptions& options);
/// Most bytes of one upload for the head: for each row what is done with it, and which it is.
std::size_t head_bytes(const BackendOptions& options);

/// Each part of an upload begins at a multiple of 16 bytes.
constexpr std::size_t upload_aligned(std::size_t bytes) {
  return (bytes + 15) / 16 * 16;
}

/// Of one row between ranks.
std::int64_t row_bytes(const BackendOptions& options);
/// Of both buffers for received rows together; each is half of it.
std::int64_t receive_bytes(std::int64_t rows, std::int64_t row_bytes);
/// Of the inner rows of this rank's experts, where as many rows come from other ranks; 0 unless
/// options.split_experts.
std::int64_t inner_bytes(const BackendOptions& options, std::int64_t receive_rows);

}  // namespace atl::compute::cuda
