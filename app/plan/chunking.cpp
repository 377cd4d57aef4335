#include "app/plan/chunking.hpp"

#include <algorithm>

namespace atl {

std::int64_t most_pass_rows(std::span<const RankLoad> loads, const ChunkLimits& limits) {
  std::int64_t most = 0;
  for (const RankLoad& load : loads) most = std::max(most, load.prompt_tokens + load.decoding);
  return std::min<std::int64_t>(most, limits.max_pass_tokens);
}

int chunk_count(std::int64_t most_rows, const ChunkLimits& limits) {
  return static_cast<int>(
      std::clamp<std::int64_t>(most_rows / limits.min_chunk_tokens, 1, limits.max_chunks));
}

}  // namespace atl
