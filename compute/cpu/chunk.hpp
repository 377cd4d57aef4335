#pragma once
// A chunk of the CPU backend: its buffers in host memory.

#include <cstdint>
#include <memory>
#include <vector>

#include "compute/aligned_buffer.hpp"
#include "compute/backend.hpp"

namespace atl::compute {

/// A chunk's own memory: what must survive from one operation to the next.
class CpuChunk final : public Chunk {
 public:
  /// `account` is the backend's sum of chunk bytes; the chunk adds and subtracts its own.
  CpuChunk(const BackendOptions& options, std::shared_ptr<std::int64_t> account);
  ~CpuChunk() override;
  CpuChunk(const CpuChunk&) = delete;
  CpuChunk& operator=(const CpuChunk&) = delete;
  void reserve_receive(std::int64_t rows) override;
  /// Grows `inner`; its contents are lost.
  void reserve_inner(std::int64_t bytes);

  std::int64_t num_tokens() const { return static_cast<std::int64_t>(tokens.size()); }
  std::int64_t bytes() const;

  AlignedBuffer x;                      // [max_tokens, H]
  AlignedBuffer qkv;                    // [max_tokens, (heads + 2 kv_heads) * head_dim]
  AlignedBuffer context;                // [max_tokens, heads * head_dim]
  AlignedBuffer inner;                  // [rows, I] of experts, between ExpertPart::up and down
  std::vector<float> router_logits;     // [max_tokens, num_experts]
  std::vector<std::int32_t> experts;    // [max_tokens, top_k], chosen, falling weight
  std::vector<float> weights;           // [max_tokens, top_k]
  std::vector<std::int32_t> slots;      // [max_tokens, top_k], row in dispatch_send
  std::vector<std::int32_t> counts;     // [num_experts], in sending order
  std::vector<std::int32_t> next_slot;  // the same, while packing

 private:
  std::int64_t row_bytes_;
  std::shared_ptr<std::int64_t> account_;
  AlignedBuffer send_;
  AlignedBuffer combined_;
  AlignedBuffer received_;
  AlignedBuffer results_;
};

}  // namespace atl::compute
