#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "compute/backend.hpp"

namespace atl {

/// A row of a chunk whose logits are wanted, and for whom.
struct HeadRow {
  std::int32_t row = 0;
  std::int32_t slot = 0;     ///< sequence
  std::int32_t target = -1;  ///< the known id whose log-probability is wanted; -1: one is drawn
  std::int32_t tops = 0;     ///< generate: most probable tokens wanted beside the one drawn
  std::int32_t ahead = 0;    ///< generate: proposed tokens of the sequence up to this row
  std::size_t outcome = 0;   ///< where its token is among the chunk's, followed by those
};

/// One chunk of one pass: the tokens of its owner, a rank or those that share attention.
struct ChunkBatch {
  std::vector<std::int32_t> tokens;        ///< [T]
  std::vector<compute::Segment> segments;  ///< cover the rows in order
  std::vector<std::int32_t> requests;      ///< [segments], whose tokens they are
  std::vector<HeadRow> head;               ///< in rising order of rows
  std::vector<SampledToken> sampled;       ///< generate: [outcomes], filled by the head step
  std::vector<ScoredToken> scored;         ///< score: [outcomes], filled by the head step
  std::size_t outcomes = 0;                ///< that the head rows have
  void add_head(HeadRow row);
  /// Whether the logits of a head row were finite; after the head step.
  bool finite(std::size_t head_row) const;
  void clear();
};

/// Where the outcomes of some of its head rows are.
struct OutcomeRange {
  std::size_t first = 0;
  std::size_t count = 0;
};

/// Of a chunk's head rows those among `count` rows from `first_row` on.
struct HeadRange {
  std::size_t first = 0;
  std::size_t count = 0;
};
HeadRange heads_in(const ChunkBatch& chunk, std::int64_t first_row, std::int64_t count);
OutcomeRange outcomes_of(const ChunkBatch& chunk, const HeadRange& heads);

}  // namespace atl
