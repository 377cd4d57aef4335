#pragma once
// Device and pinned host memory. Device memory is planned by the very code that takes it: an Arena
// without memory only counts, so that the plan and the allocation cannot differ.

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "compute/cuda/stream.hpp"
#include "compute/device_memory.hpp"

namespace atl::compute::cuda {

/// Device memory, freed with the object. Not zeroed.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  /// `what` is named when there is not enough.
  DeviceBuffer(std::size_t bytes, const char* what);

  void* data() const { return data_.get(); }
  std::size_t bytes() const { return bytes_; }

 private:
  struct Free {
    void operator()(void* data) const { cudaFree(data); }
  };
  std::unique_ptr<void, Free> data_;
  std::size_t bytes_ = 0;
};

/// Pinned host memory, which copies from and to the device need to run beside the host.
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  explicit PinnedBuffer(std::size_t bytes);

  void* data() const { return data_.get(); }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_.get());
  }
  std::size_t bytes() const { return bytes_; }

 private:
  struct Free {
    void operator()(void* data) const { cudaFreeHost(data); }
  };
  std::unique_ptr<void, Free> data_;
  std::size_t bytes_ = 0;
};

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
/// Whether `memory` is pinned, so that a copy to it runs beside the host.
bool is_pinned(const void* memory);

/// Copies for the exchange of rows, on two streams of their own, one for each direction.
class CudaMemory final : public DeviceMemory {
 public:
  CudaMemory();
  ~CudaMemory() override;

  Bytes allocate(std::size_t bytes) override;
  Bytes allocate_host(std::size_t bytes) override;
  Copy to_host(void* host, const void* device, std::size_t bytes) override;
  Copy to_device(void* device, const void* host, std::size_t bytes) override;
  bool copied(Copy copy) override;

 private:
  static constexpr Copy max_copies = 2048;
  Copy copy(const Stream& stream, void* to, const void* from, std::size_t bytes,
            cudaMemcpyKind kind);

  Stream out_;
  Stream in_;
  std::vector<CudaEvent> events_;  // [max_copies]
  Copy last_ = 0;
};

}  // namespace atl::compute::cuda
