#pragma once
// Host memory for weights, caches and vector loads.

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace atl::compute {

/// Zeroed bytes aligned to 64; large ones take physical memory only where they are touched, in huge
/// pages where the system gives them: weights and KV pages are read once per pass, and small pages
/// cost a table walk every few lines.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(std::size_t bytes) : bytes_(bytes) {
    const std::size_t alignment = bytes >= huge_page_bytes ? huge_page_bytes : line_bytes;
    // calloc maps large blocks lazily, which aligned allocation followed by memset would not. What
    // lies behind the last byte may be read by vector loads.
    block_.reset(std::calloc(bytes + alignment + line_bytes, 1));
    if (!block_) throw std::bad_alloc();
    const auto address = reinterpret_cast<std::uintptr_t>(block_.get());
    data_ = reinterpret_cast<void*>((address + alignment - 1) / alignment * alignment);
    if (bytes >= huge_page_bytes) {
      madvise(data_, bytes / huge_page_bytes * huge_page_bytes, MADV_HUGEPAGE);  // a wish
    }
  }

  void* data() const { return data_; }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  std::int64_t bytes() const { return static_cast<std::int64_t>(bytes_); }

  /// Takes physical memory for the first `most` bytes, still all zero, of a large buffer now: the
  /// system may look for a huge page for milliseconds.
  void touch(std::size_t most) {
    if (bytes_ < huge_page_bytes) return;
    constexpr std::size_t page = 4096;
    auto* bytes = static_cast<volatile char*>(data_);
    for (std::size_t i = 0; i < bytes_ && i < most; i += page) bytes[i] = 0;
  }

 private:
  static constexpr std::size_t line_bytes = 64;
  static constexpr std::size_t huge_page_bytes = std::size_t{2} << 20;
  struct Free {
    void operator()(void* block) const { std::free(block); }
  };
  std::unique_ptr<void, Free> block_;
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace atl::compute
