#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "app/plan/job_layout.hpp"
#include "app/run/batcher.hpp"

namespace atl {

/// The part of a segment that lies in `own` rows of a chunk; its first row is counted from theirs.
inline compute::Segment own_part(compute::Segment segment, const RowRange& own) {
  const std::int64_t first = std::max<std::int64_t>(segment.first_row, own.first);
  const std::int64_t end =
      std::min<std::int64_t>(std::int64_t{segment.first_row} + segment.num_rows, own.end);
  segment.first_position += static_cast<std::int32_t>(first - segment.first_row);
  segment.first_row = static_cast<std::int32_t>(first - own.first);
  segment.num_rows = static_cast<std::int32_t>(std::max<std::int64_t>(0, end - first));
  return segment;
}

/// The rows of a pass that are kept in files: those of this rank, the `place`-th of `members` that
/// share a chunk's. Of a sequence that ends in the pass since its logits are not finite, rows up to
/// those: how many come after them depends on how passes are cut.
class ComputedRows {
 public:
  explicit ComputedRows(int place = 0, int members = 1) : place_(place), members_(members) {}

  /// visit(chunk's slot, segment, its tokens, request) for every segment with own rows to keep;
  /// rows are counted from the first own one. Of the pass that has just run, with its first chunk
  /// in `first_slot`, before the batcher's finish_pass().
  template <class Visit>
  void for_each(Batcher& batch, int first_slot, const Visit& visit) {
    ended_.clear();
    for (int c = 0; c < batch.num_chunks(); ++c) {
      const ChunkBatch& chunk = batch.chunk(c);
      const RowRange own =
          rows_of_member(static_cast<std::int64_t>(chunk.tokens.size()), place_, members_);
      std::size_t head = 0;
      for (std::size_t s = 0; s < chunk.segments.size(); ++s) {
        compute::Segment segment = chunk.segments[s];
        const std::int32_t request = chunk.requests[s];
        if (std::find(ended_.begin(), ended_.end(), request) != ended_.end()) segment.num_rows = 0;
        for (; head < chunk.head.size(); ++head) {
          const std::int32_t row = chunk.head[head].row - segment.first_row;
          if (row >= chunk.segments[s].num_rows) break;
          if (row >= segment.num_rows || chunk.finite(head)) continue;
          segment.num_rows = row + 1;
          ended_.push_back(request);
        }
        segment = own_part(segment, own);
        if (segment.num_rows == 0) continue;
        const auto tokens = std::span(chunk.tokens)
                                .subspan(static_cast<std::size_t>(own.first + segment.first_row),
                                         static_cast<std::size_t>(segment.num_rows));
        visit(first_slot + c, segment, tokens, static_cast<std::size_t>(request));
      }
    }
  }

 private:
  int place_;
  int members_;
  std::vector<std::int32_t> ended_;  // requests that ended in this pass
};

}  // namespace atl
