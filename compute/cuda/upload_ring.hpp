#pragma once
// Uploads that do not wait for one another.

#include <cstddef>

#include "compute/cuda/memory.hpp"
#include "compute/cuda/stream.hpp"

namespace atl::compute::cuda {

/// Pinned memory that the host fills and a copy reads, twice, so that the next filling need not
/// wait for the last copy.
class UploadRing {
 public:
  explicit UploadRing(std::size_t bytes);
  /// Memory to fill; waits in the unlikely case that the copy before the last still reads it.
  std::byte* next();
  /// Copies `bytes` of what next() gave.
  void copy(const Stream& stream, void* to, std::size_t bytes);

 private:
  std::size_t bytes_;
  PinnedBuffer memory_;
  CudaEvent copied_[2];
  int slot_ = 0;
};

}  // namespace atl::compute::cuda
