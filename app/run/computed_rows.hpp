#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "app/run/batcher.hpp"

namespace atl {

/// The rows of a pass that are kept in files. Of a sequence that ends in the pass since its logits
/// are not finite, rows up to those: how many come after them depends on how passes are cut.
class ComputedRows {
 public:
  /// visit(chunk's index, chunk, segment, request) for every segment with rows to keep, with so
  /// many rows. Of the pass that has just run, before the batcher's finish_pass().
  template <class Visit>
  void for_each(Batcher& batch, const Visit& visit) {
    ended_.clear();
    for (int c = 0; c < batch.num_chunks(); ++c) {
      const ChunkBatch& chunk = batch.chunk(c);
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
        if (segment.num_rows > 0) visit(c, chunk, segment, static_cast<std::size_t>(request));
      }
    }
  }

 private:
  std::vector<std::int32_t> ended_;  // requests that ended in this pass
};

}  // namespace atl
