#include "app/run/prefix_key.hpp"

#include "io/long_checksum.hpp"

namespace atl {

PrefixKey prefix_key(const PrefixKey& before, std::span<const std::int32_t> tokens) {
  const io::LongChecksum sum = io::long_checksum_of(std::as_bytes(tokens), before.low);
  constexpr std::uint64_t odd = 0x9e3779b97f4a7c15;
  // Both halves of what came before have a part in both of what follows.
  return {sum.low + before.high * odd, sum.high ^ before.high};
}

std::vector<PrefixKey> page_keys(std::span<const std::int32_t> prompt, int page_tokens) {
  const auto of_page = static_cast<std::size_t>(page_tokens);
  std::vector<PrefixKey> keys;
  keys.reserve(prompt.size() / of_page);
  PrefixKey key = no_prefix;
  for (; prompt.size() >= of_page; prompt = prompt.subspan(of_page)) {
    key = prefix_key(key, prompt.first(of_page));
    keys.push_back(key);
  }
  return keys;
}

}  // namespace atl
