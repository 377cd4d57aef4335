#include "compute/cuda/upload_ring.hpp"

#include "compute/cuda/error.hpp"
#include "compute/cuda/plan/chunk_memory.hpp"

namespace atl::compute::cuda {

UploadRing::UploadRing(std::size_t bytes)
    : bytes_(upload_aligned(bytes)),
      memory_(2 * bytes_),
      copied_{CudaEvent(CudaEvent::Timing::off), CudaEvent(CudaEvent::Timing::off)} {}

std::byte* UploadRing::next() {
  slot_ = 1 - slot_;
  wait_for(copied_[slot_]);
  return memory_.as<std::byte>() + static_cast<std::size_t>(slot_) * bytes_;
}

void UploadRing::copy(const Stream& stream, void* to, std::size_t bytes) {
  if (bytes == 0) return;
  check(cudaMemcpyAsync(to, memory_.as<std::byte>() + static_cast<std::size_t>(slot_) * bytes_,
                        bytes, cudaMemcpyHostToDevice, stream.raw()),
        "cudaMemcpyAsync");
  copied_[slot_].record(stream);
}

}  // namespace atl::compute::cuda
