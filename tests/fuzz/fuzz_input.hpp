#pragma once
// What the fuzz targets share: a file in memory with a path, and the one way a reader may refuse.

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <new>
#include <span>
#include <string>
#include <utility>

#include "compute/error.hpp"

namespace atl::fuzz {

/// The input as a file that readers can open by path, without touching a disk.
class MemoryFile {
 public:
  explicit MemoryFile(std::span<const std::uint8_t> bytes)
      : descriptor_(memfd_create("fuzz", MFD_CLOEXEC)) {
    if (descriptor_ < 0) std::abort();
    while (!bytes.empty()) {
      const ssize_t written = ::write(descriptor_, bytes.data(), bytes.size());
      if (written <= 0) std::abort();
      bytes = bytes.subspan(static_cast<std::size_t>(written));
    }
  }
  ~MemoryFile() { ::close(descriptor_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  std::string path() const { return fmt::format("/proc/self/fd/{}", descriptor_); }

 private:
  int descriptor_;
};

/// Runs `work`; true when it returned. A reader may refuse its input with an Error that says
/// something; every other exception escapes and is a finding.
template <class Work>
bool accepted(Work&& work) {
  try {
    std::forward<Work>(work)();
    return true;
  } catch (const Error& error) {
    if (*error.what() == '\0') std::abort();
    return false;
  }
}

/// A finding of our own: what was accepted is not what it must be.
inline void expect(bool condition) {
  if (!condition) std::abort();
}

}  // namespace atl::fuzz
