#include "tests/emulated_cuda/memory.hpp"

#include <cuda_runtime_api.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

#include "tests/emulated_cuda/block.hpp"
#include "tests/emulated_cuda/queue.hpp"
#include "tests/emulated_cuda/settings.hpp"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes) static_cast<void>(address)
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes) static_cast<void>(address)
#endif

namespace emulated {
namespace {

constexpr std::size_t alignment = 256;
constexpr std::size_t poisoned_bytes = std::size_t{64} << 20U;  // of large ones, only the start

struct Allocation {
  std::size_t bytes = 0;
  int device = 0;
  std::byte* region = nullptr;  ///< whole pages, without the guards
  std::size_t region_bytes = 0;
  bool freed = false;
};

struct Memory {
  std::map<std::uintptr_t, Allocation> device;  ///< by the pointer handed out
  std::map<std::uintptr_t, std::size_t> pinned;
  std::map<int, std::size_t> used;
  int access = 0;
};

Memory& memory() {
  static auto* instance = new Memory;
  return *instance;
}

std::size_t page_bytes() {
  static const auto bytes = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

std::size_t round_up(std::size_t n, std::size_t to) {
  return (n + to - 1) / to * to;
}

/// The allocation, live or freed, at or before an address; null if there is none.
const std::pair<const std::uintptr_t, Allocation>* allocation_before(std::uintptr_t address) {
  auto it = memory().device.upper_bound(address);
  return it == memory().device.begin() ? nullptr : &*--it;
}

struct sigaction previous_handler;

/// Says whose memory was hit and by whom, then leaves the rest to the handler before it.
void on_bad_access(int signal, siginfo_t* info, void* context) {
  const auto address = reinterpret_cast<std::uintptr_t>(info->si_addr);
  const auto* found = allocation_before(address + page_bytes());
  if (found != nullptr && found->first > address) {
    const auto* before = allocation_before(address);
    if (address + page_bytes() < reinterpret_cast<std::uintptr_t>(found->second.region))
      found = before;
  }
  if (found != nullptr) {
    const auto& [start, a] = *found;
    const auto guarded = reinterpret_cast<std::uintptr_t>(a.region) + a.region_bytes + page_bytes();
    if (address < guarded) {
      const char* who = describe_running_thread();
      std::fprintf(stderr,
                   "emulated CUDA: %s touched byte %lld of %s allocation of %zu bytes at %#zx\n",
                   *who != '\0' ? who : "host code",
                   static_cast<long long>(address) - static_cast<long long>(start),
                   a.freed ? "a freed device" : "a device", a.bytes, start);
    }
  }
  sigaction(SIGSEGV, &previous_handler, nullptr);
  if ((previous_handler.sa_flags & SA_SIGINFO) != 0 && previous_handler.sa_sigaction != nullptr)
    previous_handler.sa_sigaction(signal, info, context);
}

void install_handler() {
  static bool installed = false;
  if (installed) return;
  installed = true;
  // A fiber may have run out of its own stack.
  static std::byte stack[std::size_t{64} << 10U];
  stack_t alternative{};
  alternative.ss_sp = stack;
  alternative.ss_size = sizeof stack;
  sigaltstack(&alternative, nullptr);
  struct sigaction action {};
  action.sa_sigaction = on_bad_access;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaction(SIGSEGV, &action, &previous_handler);
}

void protect(const Allocation& a, bool accessible) {
  mprotect(a.region, a.region_bytes, accessible ? PROT_READ | PROT_WRITE : PROT_NONE);
}

void protect_all(bool accessible) {
  for (const auto& [start, a] : memory().device)
    if (!a.freed) protect(a, accessible);
}

cudaError_t allocate(void** pointer, std::size_t bytes) {
  *pointer = nullptr;
  if (bytes == 0) return cudaSuccess;
  Memory& m = memory();
  std::size_t& used = m.used[current_device()];
  const std::size_t rounded = round_up(bytes, alignment);
  if (rounded > settings().memory_bytes - used) return cudaErrorMemoryAllocation;
  const std::size_t page = page_bytes();
  const std::size_t region = round_up(rounded, page);
  void* mapped = mmap(nullptr, region + 2 * page, PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) return cudaErrorMemoryAllocation;
  install_handler();
  Allocation a{bytes, current_device(), static_cast<std::byte*>(mapped) + page, region, false};
  protect(a, true);
  std::byte* start = a.region + region - rounded;
  std::memset(start, 0xff, std::min(bytes, poisoned_bytes));  // uninitialised memory is no number
  ASAN_POISON_MEMORY_REGION(a.region, region - rounded);
  ASAN_POISON_MEMORY_REGION(start + bytes, rounded - bytes);
  if (settings().protect && m.access == 0) protect(a, false);
  used += rounded;
  m.device[reinterpret_cast<std::uintptr_t>(start)] = a;
  *pointer = start;
  return cudaSuccess;
}

cudaError_t release(void* pointer) {
  if (pointer == nullptr) return cudaSuccess;
  Memory& m = memory();
  const auto found = m.device.find(reinterpret_cast<std::uintptr_t>(pointer));
  if (found == m.device.end() || found->second.freed) return cudaErrorInvalidValue;
  Allocation& a = found->second;
  ASAN_UNPOISON_MEMORY_REGION(a.region, a.region_bytes);
  // The addresses stay taken, so that a use after the release is noticed.
  mmap(a.region, a.region_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED,
       -1, 0);
  a.freed = true;
  m.used[a.device] -= round_up(a.bytes, alignment);
  return cudaSuccess;
}

bool wrong_side(const void* pointer, std::size_t bytes, bool wants_device) {
  return place_of(pointer, bytes) != (wants_device ? Place::device : Place::host);
}

cudaError_t check_copy(const void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  if (place_of(to, bytes) == Place::outside || place_of(from, bytes) == Place::outside)
    return cudaErrorInvalidValue;
  const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  if (kind == cudaMemcpyDefault) return cudaSuccess;
  return wrong_side(to, bytes, to_device) || wrong_side(from, bytes, from_device)
             ? cudaErrorInvalidValue
             : cudaSuccess;
}

cudaError_t copy_rows(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch,
                      std::size_t width, std::size_t rows, cudaMemcpyKind kind,
                      cudaStream_t stream) {
  if (width == 0 || rows == 0) return cudaSuccess;
  if (width > to_pitch || width > from_pitch) return cudaErrorInvalidPitchValue;
  const std::size_t to_bytes = (rows - 1) * to_pitch + width;
  const std::size_t from_bytes = (rows - 1) * from_pitch + width;
  if (place_of(to, to_bytes) == Place::outside || place_of(from, from_bytes) == Place::outside)
    return cudaErrorInvalidValue;
  if (const cudaError_t e = check_copy(to, from, width, kind); e != cudaSuccess) return e;
  return enqueue(stream, "copy", [=] {
    for (std::size_t row = 0; row < rows; ++row)
      std::memmove(static_cast<std::byte*>(to) + row * to_pitch,
                   static_cast<const std::byte*>(from) + row * from_pitch, width);
  });
}

cudaError_t fill_rows(void* to, std::size_t pitch, int value, std::size_t width, std::size_t rows,
                      cudaStream_t stream) {
  if (width == 0 || rows == 0) return cudaSuccess;
  if (width > pitch) return cudaErrorInvalidPitchValue;
  if (place_of(to, (rows - 1) * pitch + width) != Place::device) return cudaErrorInvalidValue;
  return enqueue(stream, "fill", [=] {
    for (std::size_t row = 0; row < rows; ++row)
      std::memset(static_cast<std::byte*>(to) + row * pitch, value, width);
  });
}

/// Calls that a capture in progress forbids.
template <class Body>
cudaError_t unsafe_call(const char* name, Body&& body) {
  return call(name, [&] {
    return capture_forbids_unsafe_calls() ? cudaErrorStreamCaptureUnsupported : body();
  });
}

cudaError_t allocate_pinned(void** pointer, std::size_t bytes) {
  *pointer = nullptr;
  if (bytes == 0) return cudaSuccess;
  void* memory_of_host = std::aligned_alloc(page_bytes(), round_up(bytes, page_bytes()));
  if (memory_of_host == nullptr) return cudaErrorMemoryAllocation;
  std::memset(memory_of_host, 0xff, bytes);
  memory().pinned[reinterpret_cast<std::uintptr_t>(memory_of_host)] = bytes;
  *pointer = memory_of_host;
  return cudaSuccess;
}

}  // namespace

DeviceAccess::DeviceAccess() {
  if (settings().protect && memory().access++ == 0) protect_all(true);
}
DeviceAccess::~DeviceAccess() {
  if (settings().protect && --memory().access == 0) protect_all(false);
}

Place place_of(const void* pointer, std::size_t bytes) {
  const auto address = reinterpret_cast<std::uintptr_t>(pointer);
  const auto* found = allocation_before(address);
  if (found == nullptr) return Place::host;
  const auto& [start, a] = *found;
  const auto end = reinterpret_cast<std::uintptr_t>(a.region) + a.region_bytes;
  if (address >= end + page_bytes()) return Place::host;
  return a.freed || address + bytes > start + a.bytes ? Place::outside : Place::device;
}

}  // namespace emulated

using emulated::call;

extern "C" {

cudaError_t CUDARTAPI cudaMalloc(void** pointer, size_t bytes) {
  return emulated::unsafe_call("cudaMalloc", [&] { return emulated::allocate(pointer, bytes); });
}

cudaError_t CUDARTAPI cudaMallocAsync(void** pointer, size_t bytes, cudaStream_t) {
  return call("cudaMallocAsync", [&] { return emulated::allocate(pointer, bytes); });
}

cudaError_t CUDARTAPI cudaFree(void* pointer) {
  return emulated::unsafe_call("cudaFree", [&] {
    emulated::run_all();  // as the real one, it waits for all work
    return emulated::release(pointer);
  });
}

cudaError_t CUDARTAPI cudaFreeAsync(void* pointer, cudaStream_t stream) {
  return call("cudaFreeAsync", [&] {
    return emulated::enqueue(stream, "free", [=] { emulated::release(pointer); });
  });
}

cudaError_t CUDARTAPI cudaHostAlloc(void** pointer, size_t bytes, unsigned) {
  return emulated::unsafe_call("cudaHostAlloc",
                               [&] { return emulated::allocate_pinned(pointer, bytes); });
}

cudaError_t CUDARTAPI cudaMallocHost(void** pointer, size_t bytes) {
  return emulated::unsafe_call("cudaMallocHost",
                               [&] { return emulated::allocate_pinned(pointer, bytes); });
}

cudaError_t CUDARTAPI cudaFreeHost(void* pointer) {
  return emulated::unsafe_call("cudaFreeHost", [&] {
    if (pointer == nullptr) return cudaSuccess;
    if (emulated::memory().pinned.erase(reinterpret_cast<std::uintptr_t>(pointer)) == 0)
      return cudaErrorInvalidValue;
    emulated::run_all();
    std::free(pointer);
    return cudaSuccess;
  });
}

cudaError_t CUDARTAPI cudaHostRegister(void* pointer, size_t bytes, unsigned) {
  return emulated::unsafe_call("cudaHostRegister", [&] {
    auto& pinned = emulated::memory().pinned;
    return pinned.emplace(reinterpret_cast<std::uintptr_t>(pointer), bytes).second
               ? cudaSuccess
               : cudaErrorHostMemoryAlreadyRegistered;
  });
}

cudaError_t CUDARTAPI cudaHostUnregister(void* pointer) {
  return emulated::unsafe_call("cudaHostUnregister", [&] {
    return emulated::memory().pinned.erase(reinterpret_cast<std::uintptr_t>(pointer)) == 1
               ? cudaSuccess
               : cudaErrorHostMemoryNotRegistered;
  });
}

cudaError_t CUDARTAPI cudaHostGetDevicePointer(void** device, void* host, unsigned) {
  *device = host;
  return cudaSuccess;
}

cudaError_t CUDARTAPI cudaMemGetInfo(size_t* free_bytes, size_t* total) {
  return call("cudaMemGetInfo", [&] {
    *total = emulated::settings().memory_bytes;
    *free_bytes = *total - emulated::memory().used[emulated::current_device()];
    return cudaSuccess;
  });
}

cudaError_t CUDARTAPI cudaPointerGetAttributes(cudaPointerAttributes* attributes,
                                               const void* pointer) {
  return call("cudaPointerGetAttributes", [&] {
    *attributes = {};
    attributes->device = -1;
    attributes->hostPointer = const_cast<void*>(pointer);
    const auto address = reinterpret_cast<std::uintptr_t>(pointer);
    auto pinned = emulated::memory().pinned.upper_bound(address);
    if (emulated::place_of(pointer, 1) == emulated::Place::device) {
      attributes->type = cudaMemoryTypeDevice;
      attributes->device = emulated::allocation_before(address)->second.device;
      attributes->hostPointer = nullptr;
      attributes->devicePointer = const_cast<void*>(pointer);
    } else if (pinned != emulated::memory().pinned.begin() &&
               (--pinned, address < pinned->first + pinned->second)) {
      attributes->type = cudaMemoryTypeHost;
      attributes->device = emulated::current_device();
      attributes->devicePointer = const_cast<void*>(pointer);
    }
    return cudaSuccess;
  });
}

cudaError_t CUDARTAPI cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                                      cudaStream_t stream) {
  return call("cudaMemcpyAsync",
              [&] { return emulated::copy_rows(to, bytes, from, bytes, bytes, 1, kind, stream); });
}

cudaError_t CUDARTAPI cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from,
                                        size_t from_pitch, size_t width, size_t rows,
                                        cudaMemcpyKind kind, cudaStream_t stream) {
  return call("cudaMemcpy2DAsync", [&] {
    return emulated::copy_rows(to, to_pitch, from, from_pitch, width, rows, kind, stream);
  });
}

cudaError_t CUDARTAPI cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  const cudaError_t status = emulated::unsafe_call("cudaMemcpy", [&] {
    return emulated::copy_rows(to, bytes, from, bytes, bytes, 1, kind, nullptr);
  });
  return status == cudaSuccess ? cudaStreamSynchronize(nullptr) : status;
}

cudaError_t CUDARTAPI cudaMemcpy2D(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                                   size_t width, size_t rows, cudaMemcpyKind kind) {
  const cudaError_t status = emulated::unsafe_call("cudaMemcpy2D", [&] {
    return emulated::copy_rows(to, to_pitch, from, from_pitch, width, rows, kind, nullptr);
  });
  return status == cudaSuccess ? cudaStreamSynchronize(nullptr) : status;
}

cudaError_t CUDARTAPI cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  return call("cudaMemsetAsync",
              [&] { return emulated::fill_rows(to, bytes, value, bytes, 1, stream); });
}

cudaError_t CUDARTAPI cudaMemset2DAsync(void* to, size_t pitch, int value, size_t width,
                                        size_t rows, cudaStream_t stream) {
  return call("cudaMemset2DAsync",
              [&] { return emulated::fill_rows(to, pitch, value, width, rows, stream); });
}

cudaError_t CUDARTAPI cudaMemset(void* to, int value, size_t bytes) {
  const cudaError_t status = emulated::unsafe_call(
      "cudaMemset", [&] { return emulated::fill_rows(to, bytes, value, bytes, 1, nullptr); });
  return status == cudaSuccess ? cudaStreamSynchronize(nullptr) : status;
}

}  // extern "C"
