#include "app/run/head_step.hpp"

namespace atl {

HeadStep::HeadStep(Mode mode, std::size_t max_rows) : mode_(mode) {
  rows_.reserve(max_rows);
  targets_.reserve(max_rows);
  how_.reserve(max_rows);
}

compute::Event HeadStep::launch(compute::Backend& backend, compute::Chunk& chunk,
                                const Batcher& batcher, ChunkBatch& batch) {
  rows_.clear();
  targets_.clear();
  how_.clear();
  const auto first_row = static_cast<std::int32_t>(chunk.first_own_row);
  const auto own = heads_in(batch, chunk.first_own_row, std::ssize(chunk.tokens));
  const std::size_t first_outcome = outcomes_of(batch, own).first;
  const auto heads = std::span<const HeadRow>(batch.head).subspan(own.first, own.count);
  for (const HeadRow& head : heads) rows_.push_back(head.row - first_row);
  if (mode_ == Mode::score) {
    for (const HeadRow& head : heads) targets_.push_back(head.target);
    batch.scored.resize(batch.outcomes);
    return backend.logprobs(chunk, rows_, targets_, batch.scored.data() + first_outcome);
  }
  ask(batcher, heads);
  batch.sampled.resize(batch.outcomes);
  return backend.sample(chunk, rows_, how_, batch.sampled.data() + first_outcome);
}

/// Each row gets changes of its own, since they are written to.
void HeadStep::ask(const Batcher& batcher, std::span<const HeadRow> heads) {
  changes_.clear();
  for (const HeadRow& head : heads) {
    how_.push_back(batcher.sampling_of(head));
    const auto changes = batcher.changes_of(head);
    changes_.insert(changes_.end(), changes.begin(), changes.end());
  }
  std::span<LogitChange> left = changes_;
  for (std::size_t i = 0; i < heads.size(); ++i) {
    const std::size_t count = batcher.changes_of(heads[i]).size();
    how_[i].changes = left.first(count);
    left = left.subspan(count);
  }
}

}  // namespace atl
