#pragma once
// A checksum of 128 bits, by which texts are told apart that are not compared.

#include <cstddef>
#include <cstdint>
#include <span>

namespace atl::io {

struct LongChecksum {
  std::uint64_t low = 0;
  std::uint64_t high = 0;
};

/// Another one for each `seed`.
LongChecksum long_checksum_of(std::span<const std::byte> bytes, std::uint64_t seed);

}  // namespace atl::io
