#pragma once
// Memory that the host cannot read, as other rooms handle it: allocate, copy, ask whether a copy is
// done. Knows no CUDA.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace atl::compute {

/// A device's memory and its copies from and to the host, beside the arithmetic. One thread calls
/// it. Functions throw Error when the device fails.
class DeviceMemory {
 public:
  virtual ~DeviceMemory() = default;

  using Bytes = std::shared_ptr<std::byte>;
  virtual Bytes allocate(std::size_t bytes) = 0;  ///< on the device; freed with the last owner
  virtual Bytes allocate_host(
      std::size_t bytes) = 0;  ///< on the host, pinned: copies run beside it

  /// Ticket of a copy.
  using Copy = std::uint64_t;
  /// Copies to pinned host memory once everything is done that the caller has seen completed.
  virtual Copy to_host(void* host, const void* device, std::size_t bytes) = 0;
  virtual Copy to_device(void* device, const void* host, std::size_t bytes) = 0;
  virtual bool copied(Copy copy) = 0;

  /// From now on others may have mapped what they were given pointers to (MPI libraries do, and
  /// keep it so): what held rows between ranks is freed only with this object.
  virtual void lend() {}
  /// The same of one piece of memory.
  void keep(Bytes bytes) { kept_.push_back(std::move(bytes)); }

 private:
  std::vector<Bytes> kept_;
};

}  // namespace atl::compute
