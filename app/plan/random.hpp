#pragma once
// Numbers that look random and are the same on every machine.

#include <cstddef>
#include <cstdint>

namespace atl {

/// SplitMix64 (Steele, Lea and Flood, 2014): one number for each counter.
inline std::uint64_t split_mix64(std::uint64_t counter) {
  std::uint64_t z = counter + 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

/// A sequence of them.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  /// In [0, end), end below 2^32.
  std::size_t below(std::size_t end) {
    const std::uint64_t z = split_mix64(state_);
    state_ += 0x9e3779b97f4a7c15;
    return static_cast<std::size_t>((z >> 32) * end >> 32);
  }

 private:
  std::uint64_t state_;
};

}  // namespace atl
