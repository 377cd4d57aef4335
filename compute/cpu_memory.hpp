#pragma once
// Memory and loops of the CPU backend: zeroed aligned buffers, and parallel ranges.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <utility>

namespace atl::compute {

/// Zeroed bytes aligned to 64; large ones take physical memory only where they are touched.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(std::size_t bytes) : bytes_(bytes) {
    // calloc maps large blocks lazily, which aligned allocation followed by memset would not.
    block_.reset(std::calloc(bytes + 2 * alignment, 1));
    if (!block_) throw std::bad_alloc();
    const auto address = reinterpret_cast<std::uintptr_t>(block_.get());
    data_ = reinterpret_cast<void*>((address + alignment - 1) / alignment * alignment);
  }

  void* data() const { return data_; }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  std::int64_t bytes() const { return static_cast<std::int64_t>(bytes_); }

 private:
  static constexpr std::size_t alignment = 64;
  struct Free {
    void operator()(void* block) const { std::free(block); }
  };
  std::unique_ptr<void, Free> block_;
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

/// Calls body(begin, end, thread) so that the ranges cover [0, count), on at most `num_threads`
/// threads that get at least `grain` items each; without a parallel region when one suffices.
template <class Body>
void parallel_ranges(int num_threads, std::int64_t count, std::int64_t grain, Body&& body) {
  const std::int64_t parts =
      std::min<std::int64_t>(num_threads, count / std::max<std::int64_t>(grain, 1));
  if (parts <= 1) {
    if (count > 0) body(std::int64_t{0}, count, 0);
    return;
  }
#pragma omp parallel for num_threads(static_cast <int>(parts)) schedule(static, 1)
  for (int part = 0; part < static_cast<int>(parts); ++part) {
    body(count * part / parts, count * (part + 1) / parts, part);
  }
}

}  // namespace atl::compute
