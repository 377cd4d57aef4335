#pragma once
// Device and pinned host memory.

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
  /// Waits for all copies; says nothing of errors.
  void settle() const noexcept;
  void lend() override { lent_ = true; }

  /// Takes what held rows between ranks, to free it at once or, where it may be lent, at the end.
  void retire(DeviceBuffer buffer);
  /// Of what was retired and is still there.
  std::int64_t retired_bytes() const;

 private:
  static constexpr Copy max_copies = 2048;
  Copy copy(const Stream& stream, void* to, const void* from, std::size_t bytes,
            cudaMemcpyKind kind);

  Stream out_;
  Stream in_;
  std::vector<CudaEvent> events_;  // [max_copies]
  Copy last_ = 0;
  bool lent_ = false;
  std::vector<DeviceBuffer> retired_;
};

}  // namespace atl::compute::cuda
