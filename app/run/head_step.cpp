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
  for (const HeadRow& head : batch.head) rows_.push_back(head.row);
  if (mode_ == Mode::score) {
    for (const HeadRow& head : batch.head) targets_.push_back(head.target);
    batch.logprobs.resize(batch.head.size());
    return backend.logprobs(chunk, rows_, targets_, batch.logprobs.data());
  }
  for (const HeadRow& head : batch.head) how_.push_back(batcher.sampling_of(head));
  batch.sampled.resize(batch.head.size());
  return backend.sample(chunk, rows_, how_, batch.sampled.data());
}

}  // namespace atl
