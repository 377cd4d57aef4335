#include "app/run/chunk_batch.hpp"

#include <algorithm>
#include <cmath>

namespace atl {

bool ChunkBatch::finite(std::size_t head_row) const {
  if (sampled.empty()) return std::isfinite(logprobs[head_row]);
  return sampled[head_row].token >= 0 && std::isfinite(sampled[head_row].logprob);
}

HeadRange heads_in(const ChunkBatch& chunk, std::int64_t first_row, std::int64_t count) {
  const auto before = [&](std::int64_t row) {  // head rows are in rising order
    return static_cast<std::size_t>(
        std::lower_bound(chunk.head.begin(), chunk.head.end(), row,
                         [](const HeadRow& head, std::int64_t r) { return head.row < r; }) -
        chunk.head.begin());
  };
  const std::size_t first = before(first_row);
  return {first, before(first_row + count) - first};
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
