#pragma once
// What a pass has to do, counted: tokens of each owner and chunk, and where in their sequences.

#include <cstdint>
#include <vector>

#include "app/plan/phase.hpp"

namespace atl {

/// So many consecutive tokens of one sequence.
struct LoadSegment {
  std::int64_t rows = 0;
  std::int64_t first_position = 0;
  std::uint64_t first_token = 0;  ///< its number among all tokens of the job, see JobWalk
};

/// Of one owner (the ranks that share its sequences) in one chunk.
struct ChunkLoad {
  std::int64_t rows = 0;
  std::int64_t head_rows = 0;  ///< whose logits are wanted
  std::vector<LoadSegment> segments;
};

struct PassLoad {
  Phase phase = Phase::prefill;
  int num_chunks = 1;
  std::vector<std::vector<ChunkLoad>> owners;  ///< [owners][chunks]
  std::int64_t prompt_tokens = 0;              ///< of all owners
  std::int64_t new_tokens = 0;                 ///< that it gives

  std::int64_t rows() const {
    std::int64_t rows = 0;
    for (const auto& owner : owners) {
      for (const ChunkLoad& chunk : owner) rows += chunk.rows;
    }
    return rows;
  }
};

}  // namespace atl
