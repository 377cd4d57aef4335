#pragma once
// A chunk of the CPU backend: its buffers in host memory.

#include <cstdint>
#include <memory>

#include "compute/aligned_buffer.hpp"
#include "compute/backend.hpp"
#include "compute/cpu/chunk_memory.hpp"

namespace atl::compute {

/// A chunk's own memory: what must survive from one operation to the next.
class CpuChunk final : public Chunk {
 public:
  /// `account` is the backend's sum of chunk bytes, and the chunk adds and subtracts its own.
  CpuChunk(const BackendOptions& options, std::shared_ptr<std::int64_t> account);
  ~CpuChunk() override;
  CpuChunk(const CpuChunk&) = delete;
  CpuChunk& operator=(const CpuChunk&) = delete;
  void reserve_receive(std::int64_t rows) override;
  void reserve_across(const NodeRows& rows, std::int64_t forwarded) override;
  void reserve_experts(const ExpertRoom& room) override;
  /// Grows `inner`; its contents are lost.
  void reserve_inner(std::int64_t bytes);

  const BackendOptions& options() const { return options_; }
  int max_tokens() const { return options_.max_chunk_tokens; }
  std::int64_t num_tokens() const { return static_cast<std::int64_t>(tokens.size()); }
  std::int64_t bytes() const;

  CpuChunkMemory memory;
  CpuForwardMemory forward;
  CpuExpertMemory experts;
  RouteTo routed_to = RouteTo::experts;  // by the last route
  AlignedBuffer inner;                   // [rows, I] of experts, between ExpertPart::up and down

 private:
  const BackendOptions options_;
  std::shared_ptr<std::int64_t> account_;
  std::int64_t memory_bytes_ = 0;
  std::int64_t forward_bytes_ = 0;
  std::int64_t expert_bytes_ = 0;
  ForwardRoom room_;
  ExpertRoom expert_room_;
  AlignedBuffer received_;
  AlignedBuffer results_;
};

}  // namespace atl::compute
