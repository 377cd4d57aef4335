#include "app/run/chunk_batch.hpp"

#include <cmath>

namespace atl {

bool ChunkBatch::finite(std::size_t head_row) const {
  if (sampled.empty()) return std::isfinite(logprobs[head_row]);
  return sampled[head_row].token >= 0 && std::isfinite(sampled[head_row].logprob);
}

void ChunkBatch::clear() {
  tokens.clear();
  segments.clear();
  requests.clear();
  head.clear();
  sampled.clear();
  logprobs.clear();
}

}  // namespace atl
