#include "app/run/chunk_batch.hpp"

#include <algorithm>
#include <cmath>

namespace atl {

void ChunkBatch::add_head(HeadRow row) {
  row.outcome = outcomes;
  outcomes += 1 + static_cast<std::size_t>(row.tops);
  head.push_back(row);
}

bool ChunkBatch::finite(std::size_t head_row) const {
  const std::size_t at = head[head_row].outcome;
  if (sampled.empty()) return std::isfinite(scored[at].logprob);
  return sampled[at].token >= 0 && std::isfinite(sampled[at].logprob);
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

OutcomeRange outcomes_of(const ChunkBatch& chunk, const HeadRange& heads) {
  const auto before = [&](std::size_t head) {
    return head < chunk.head.size() ? chunk.head[head].outcome : chunk.outcomes;
  };
  const std::size_t first = before(heads.first);
  return {first, before(heads.first + heads.count) - first};
}

void ChunkBatch::clear() {
  tokens.clear();
  segments.clear();
  requests.clear();
  head.clear();
  sampled.clear();
  scored.clear();
  outcomes = 0;
}

}  // namespace atl
