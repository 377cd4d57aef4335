#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "app/run/batcher.hpp"
#include "compute/backend.hpp"

namespace atl {

/// The last step of a chunk: tokens chosen, or log-probabilities, at the rows of its head. What the
/// backend reads of it stays until the step is done.
class HeadStep {
 public:
  HeadStep(Mode mode, std::size_t max_rows);

  /// `batch` is a chunk of `batcher`'s pass; its `sampled` or `scored` are filled where rows are
  /// among those of `chunk`.
  compute::Event launch(compute::Backend& backend, compute::Chunk& chunk, const Batcher& batcher,
                        ChunkBatch& batch);

 private:
  void ask(const Batcher& batcher, std::span<const HeadRow> heads);

  Mode mode_;
  std::vector<std::int32_t> rows_, targets_;
  std::vector<SamplingRequest> how_;
  std::vector<LogitChange> changes_;  // of all rows
};

}  // namespace atl
