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
  const auto heads = std::span(batch.head).subspan(own.first, own.count);
  for (const HeadRow& head : heads) rows_.push_back(head.row - first_row);
  if (mode_ == Mode::score) {
    for (const HeadRow& head : heads) targets_.push_back(head.target);
    batch.logprobs.resize(batch.head.size());
    return backend.logprobs(chunk, rows_, targets_, batch.logprobs.data() + own.first);
  }
  for (const HeadRow& head : heads) how_.push_back(batcher.sampling_of(head));
  batch.sampled.resize(batch.head.size());
  return backend.sample(chunk, rows_, how_, batch.sampled.data() + own.first);
}

}  // namespace atl
