#include "compute/cuda/memory.hpp"

#include <utility>

#include "compute/cuda/error.hpp"
#include "compute/error.hpp"

namespace atl::compute::cuda {

DeviceBuffer::DeviceBuffer(std::size_t bytes, const char* what) : bytes_(bytes) {
  if (bytes == 0) return;
  void* data = nullptr;
  const cudaError_t code = cudaMalloc(&data, bytes);
  if (code == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    std::size_t free = 0;
    std::size_t total = 0;
    cudaMemGetInfo(&free, &total);
    fail(
        "cannot take {:.1f} MiB for {} on {} ({:.1f} MiB are free); give the ranks less to hold "
        "(--kv-tokens, --step-tokens, more ranks or devices)",
        static_cast<double>(bytes) / (1 << 20), what, device_name(),
        static_cast<double>(free) / (1 << 20));
  }
  check(code, "cudaMalloc");
  data_.reset(data);
}

PinnedBuffer::PinnedBuffer(std::size_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
  void* data = nullptr;
  check(cudaHostAlloc(&data, bytes, cudaHostAllocDefault), "cudaHostAlloc");
  data_.reset(data);
}

bool is_pinned(const void* memory) {
  cudaPointerAttributes attributes{};
  if (cudaPointerGetAttributes(&attributes, memory) == cudaSuccess) {
    return attributes.type == cudaMemoryTypeHost;
  }
  cudaGetLastError();
  return false;
}

CudaMemory::CudaMemory() : out_(Stream::Priority::high), in_(Stream::Priority::high) {
  for (Copy i = 0; i < max_copies; ++i) events_.emplace_back(CudaEvent::Timing::off);
}

CudaMemory::~CudaMemory() {
  // Buffers that copies still touch may be freed after this; errors were reported to who waited.
  settle();
}

void CudaMemory::settle() const noexcept {
  cudaStreamSynchronize(out_.raw());
  cudaStreamSynchronize(in_.raw());
}

DeviceMemory::Bytes CudaMemory::allocate(std::size_t bytes) {
  auto buffer = std::make_shared<DeviceBuffer>(bytes, "rows between ranks");
  return {buffer, static_cast<std::byte*>(buffer->data())};
}

DeviceMemory::Bytes CudaMemory::allocate_host(std::size_t bytes) {
  auto buffer = std::make_shared<PinnedBuffer>(bytes);
  return {buffer, buffer->as<std::byte>()};
}

DeviceMemory::Copy CudaMemory::to_host(void* host, const void* device, std::size_t bytes) {
  return copy(out_, host, device, bytes, cudaMemcpyDeviceToHost);
}

DeviceMemory::Copy CudaMemory::to_device(void* device, const void* host, std::size_t bytes) {
  return copy(in_, device, host, bytes, cudaMemcpyHostToDevice);
}

DeviceMemory::Copy CudaMemory::copy(const Stream& stream, void* to, const void* from,
                                    std::size_t bytes, cudaMemcpyKind kind) {
  const Doing doing("staging rows between ranks");
  const Copy next = last_ + 1;
  if (next > max_copies) wait_for(events_[next % max_copies]);  // rarely: so many are under way
  check(cudaMemcpyAsync(to, from, bytes, kind, stream.raw()), "cudaMemcpyAsync");
  events_[next % max_copies].record(stream);
  last_ = next;
  return next;
}

void CudaMemory::retire(DeviceBuffer buffer) {
  if (lent_ && buffer.bytes() > 0) retired_.push_back(std::move(buffer));
}

std::int64_t CudaMemory::retired_bytes() const {
  std::size_t bytes = 0;
  for (const DeviceBuffer& buffer : retired_) bytes += buffer.bytes();
  return static_cast<std::int64_t>(bytes);
}

bool CudaMemory::copied(Copy copy) {
  if (copy + max_copies <= last_) return true;  // its event was taken for a later one
  const Doing doing("staging rows between ranks");
  return events_[copy % max_copies].reached();
}

}  // namespace atl::compute::cuda
