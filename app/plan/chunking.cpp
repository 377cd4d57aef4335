#include "app/plan/chunking.hpp"

#include <algorithm>

namespace atl {

int chunk_count(std::span<const RankLoad> loads, const ChunkLimits& limits) {
  std::int64_t most = 0;
  for (const RankLoad& load : loads) most = std::max(most, load.prompt_tokens + load.decoding);
  most = std::min<std::int64_t>(most, limits.max_pass_tokens);
  if (most == 0) return 0;
  return static_cast<int>(
      std::clamp<std::int64_t>(most / limits.min_chunk_tokens, 1, limits.max_chunks));
}

}  // namespace atl
