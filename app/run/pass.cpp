#include "app/run/pass.hpp"

#include <algorithm>

namespace atl {

Pass::Pass(const BatchOptions& options)
    : max_rows_(options.max_pass_tokens),
      mode_(options.mode),
      chunks_(static_cast<std::size_t>(options.max_chunks)) {
  const auto rows = static_cast<std::size_t>(max_rows_);
  const auto sequences = static_cast<std::size_t>(options.max_sequences);
  const std::size_t sampled =
      std::min(rows, sequences * (1 + static_cast<std::size_t>(options.speculate)));
  for (ChunkBatch& chunk : chunks_) {
    chunk.tokens.reserve(rows);
    chunk.segments.reserve(sequences + 1);
    chunk.requests.reserve(sequences + 1);
    chunk.head.reserve(rows);
    chunk.sampled.reserve(std::max(sequences, sampled));
    chunk.scored.reserve(rows);
  }
}

void Pass::build(Sequences& sequences, int num_chunks) {
  for (ChunkBatch& chunk : chunks_) chunk.clear();
  num_chunks_ = num_chunks;
  rows_ = 0;
  prompt_rows_ = 0;
  std::int64_t wanted = 0;
  for (const std::int32_t slot : sequences.taken()) wanted += sequences.in_slot(slot).rows();
  const std::int64_t all_rows = std::min<std::int64_t>(wanted, max_rows_);
  for (const bool prefill : {false, true}) {
    const std::int64_t before = rows_;
    for (const std::int32_t slot : sequences.taken()) {
      Sequence& sequence = sequences.in_slot(slot);
      if (sequence.prefilling() != prefill) continue;
      const auto count = std::min<std::int64_t>(sequence.rows(), all_rows - rows_);
      add(sequence, slot, static_cast<std::int32_t>(count), all_rows);
    }
    if (prefill) prompt_rows_ = rows_ - before;
  }
}

/// The next `count` tokens of a sequence, in one chunk or over several.
void Pass::add(Sequence& sequence, std::int32_t slot, std::int32_t count, std::int64_t all_rows) {
  while (count > 0) {
    int index = 0;
    while (chunk_end(all_rows, index, num_chunks_) <= rows_) ++index;
    ChunkBatch& chunk = this->chunk(index);
    const auto rows = static_cast<std::int32_t>(
        std::min<std::int64_t>(count, chunk_end(all_rows, index, num_chunks_) - rows_));
    const auto first_row = static_cast<std::int32_t>(chunk.tokens.size());
    chunk.segments.push_back(
        {first_row, rows, sequence.cached, sequence.pages.data(), sequence.prompt_length});
    chunk.requests.push_back(sequence.request);
    for (std::int32_t i = 0; i < rows; ++i) {
      const std::int32_t position = sequence.cached + i;
      chunk.tokens.push_back(sequence.token_at(position));
      add_head_row(chunk, sequence, slot, first_row + i, position);
    }
    sequence.cached += rows;
    rows_ += rows;
    count -= rows;
  }
}

/// Scoring wants the logits before every known token, generating those after the last one and after
/// every proposed one, and before every one of a prompt that is scored beside it.
void Pass::add_head_row(ChunkBatch& chunk, const Sequence& sequence, std::int32_t slot,
                        std::int32_t row, std::int32_t position) const {
  const std::int32_t ahead = position + 1 - sequence.length();
  if (mode_ == Mode::generate) {
    const std::int32_t tops = sequence.asked.top_logprobs;
    if (ahead < 0 && sequence.asked.scores_prompt()) {
      chunk.add_head({row, slot, sequence.tokens[static_cast<std::size_t>(position) + 1], tops});
    } else if (ahead >= 0 && sequence.max_new > 0) {
      chunk.add_head({row, slot, -1, tops, ahead});
    }
  } else if (ahead < 0 && position + 1 >= sequence.asked.scored_from) {
    chunk.add_head({row, slot, sequence.tokens[static_cast<std::size_t>(position) + 1]});
  }
}

}  // namespace atl
