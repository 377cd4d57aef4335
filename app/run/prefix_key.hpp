#pragma once
// The beginning of a prompt in 128 bits: two of them are taken for equal where these are.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace atl {

struct PrefixKey {
  std::uint64_t low = 0;
  std::uint64_t high = 0;

  bool operator==(const PrefixKey&) const = default;
};

struct PrefixKeyHash {
  std::size_t operator()(const PrefixKey& key) const { return static_cast<std::size_t>(key.low); }
};

/// Of no token at all.
inline constexpr PrefixKey no_prefix = {};

/// Of what `before` is of, and these tokens behind it.
PrefixKey prefix_key(const PrefixKey& before, std::span<const std::int32_t> tokens);

/// Of the first `page_tokens` tokens of a prompt, of twice as many, and so on: [whole pages].
std::vector<PrefixKey> page_keys(std::span<const std::int32_t> prompt, int page_tokens);

}  // namespace atl
