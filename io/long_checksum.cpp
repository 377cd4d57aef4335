#include "io/long_checksum.hpp"

#include <xxhash.h>

namespace atl::io {

LongChecksum long_checksum_of(std::span<const std::byte> bytes, std::uint64_t seed) {
  const XXH128_hash_t sum = XXH3_128bits_withSeed(bytes.data(), bytes.size(), seed);
  return {sum.low64, sum.high64};
}

}  // namespace atl::io
