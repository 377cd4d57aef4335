#pragma once
// Memory is planned by the very code that takes it: an Arena without memory only counts, so that
// plan and allocation cannot differ. Nothing in this folder needs a header of CUDA: any machine can
// add up what a rank takes of a GPU.

#include <cstddef>
#include <cstdint>

#include "compute/backend.hpp"

namespace atl::compute::cuda {

/// Cuts one piece of device memory, or only counts what would be cut from it.
class Arena {
 public:
  Arena() = default;  ///< counts; every pointer taken is null
  explicit Arena(void* memory) : memory_(static_cast<std::byte*>(memory)) {}

  /// Aligned as cuBLASLt likes it best.
  void* take_bytes(std::size_t bytes) {
    void* at = memory_ == nullptr ? nullptr : memory_ + bytes_;
    bytes_ += (bytes + alignment - 1) / alignment * alignment;
    return at;
  }
  template <class T>
  T* take(std::int64_t count) {
    return static_cast<T*>(take_bytes(static_cast<std::size_t>(count) * sizeof(T)));
  }
  std::size_t bytes() const { return bytes_; }

  static constexpr std::size_t alignment = 256;

 private:
  std::byte* memory_ = nullptr;
  std::size_t bytes_ = 0;
};

/// Bytes that a part (WeightMemory, KvCache, Workspace or ChunkMemory) takes from an Arena.
template <class Part>
std::size_t planned_bytes(const BackendOptions& options) {
  Arena plan;
  Part(options, plan);
  return plan.bytes();
}

}  // namespace atl::compute::cuda
