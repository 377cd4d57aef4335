#pragma once
// The checksum of a text that is still growing.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

namespace atl::io {

class RunningChecksum {
 public:
  RunningChecksum();
  ~RunningChecksum();
  void add(std::span<const std::byte> bytes);
  /// checksum_of() all bytes so far.
  std::uint64_t value() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace atl::io
