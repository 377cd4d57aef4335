#pragma once
// Memory and loops of the CPU backend: zeroed aligned buffers, parallel ranges and tasks.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <utility>
#include <vector>

#include "compute/aligned_buffer.hpp"

namespace atl::compute {

/// Takes buffers, or only counts their bytes: memory is planned by the very code that takes it.
class HostArena {
 public:
  enum class Mode : std::uint8_t { take, count };
  explicit HostArena(Mode mode) : mode_(mode) {}

  /// Zeroed; empty where the arena only counts. The first pass finds its first `touched` bytes in
  /// memory.
  AlignedBuffer buffer(std::int64_t bytes, std::size_t touched = std::size_t{32} << 20) {
    bytes_ += bytes;
    if (mode_ == Mode::count) return AlignedBuffer();
    AlignedBuffer buffer(static_cast<std::size_t>(bytes));
    buffer.touch(touched);
    return buffer;
  }
  template <class T>
  std::vector<T> vector(std::int64_t count) {
    bytes_ += count * static_cast<std::int64_t>(sizeof(T));
    return std::vector<T>(mode_ == Mode::take ? static_cast<std::size_t>(count) : 0);
  }
  std::int64_t bytes() const { return bytes_; }

 private:
  Mode mode_;
  std::int64_t bytes_ = 0;
};

/// Fewest rows of `width` elements worth a thread of their own in an elementwise kernel.
inline std::int64_t grain_rows(std::int64_t width) {
  constexpr std::int64_t grain_elements = 16384;
  return std::max<std::int64_t>(1, grain_elements / std::max<std::int64_t>(width, 1));
}

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

/// Calls body(task, thread) for every task in [0, count), which threads take as they become free.
template <class Body>
void parallel_tasks(int num_threads, std::int64_t count, Body&& body) {
  const std::int64_t threads = std::min<std::int64_t>(num_threads, count);
  if (threads <= 1) {
    for (std::int64_t task = 0; task < count; ++task) body(task, 0);
    return;
  }
  std::atomic<std::int64_t> next{0};
  parallel_ranges(static_cast<int>(threads), threads, 1,
                  [&](std::int64_t, std::int64_t, int thread) {
                    for (std::int64_t task = next++; task < count; task = next++)
                      body(task, thread);
                  });
}

}  // namespace atl::compute
