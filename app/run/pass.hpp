#pragma once

#include <cstdint>
#include <vector>

#include "app/run/batch_options.hpp"
#include "app/run/chunk_batch.hpp"
#include "app/run/sequences.hpp"

namespace atl {

/// This rank's part of one batch on its way through all layers, cut into chunks.
class Pass {
 public:
  /// All that passes need is allocated here.
  explicit Pass(const BatchOptions& options);

  /// Takes what is uncached of the sequences, up to options.max_pass_tokens: first of those that
  /// generate, then of prompts in order of admission. Afterwards it counts as cached.
  void build(Sequences& sequences, int num_chunks);

  int num_chunks() const { return num_chunks_; }
  ChunkBatch& chunk(int index) { return chunks_[static_cast<std::size_t>(index)]; }
  const ChunkBatch& chunk(int index) const { return chunks_[static_cast<std::size_t>(index)]; }
  std::int64_t rows() const { return rows_; }
  std::int64_t prompt_rows() const { return prompt_rows_; }  ///< of these, tokens of prompts

 private:
  void add(Sequence& sequence, std::int32_t slot, std::int32_t count, std::int64_t all_rows);
  void add_head_row(ChunkBatch& chunk, const Sequence& sequence, std::int32_t slot,
                    std::int32_t row, std::int32_t position) const;

  int max_rows_;
  Mode mode_;
  std::vector<ChunkBatch> chunks_;
  int num_chunks_ = 0;
  std::int64_t rows_ = 0;
  std::int64_t prompt_rows_ = 0;
};

}  // namespace atl
