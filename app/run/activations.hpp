#pragma once
// Keeps x after chosen layers of a run, for comparison with other runs.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "app/run/batcher.hpp"
#include "comm/communicator.hpp"
#include "io/activation_file.hpp"

namespace atl {

/// The rows of each request: one for every token that may go through the layers, which the last one
/// generated does not. Requests that name no number of new tokens get `max_tokens`.
io::ActivationLayout activation_layout(const std::vector<io::Request>& requests, Mode mode,
                                       int max_tokens);

/// Collective: rank 0's layout on all ranks, which write their rows where it says.
io::ActivationLayout shared_layout(const comm::Communicator& world, io::ActivationLayout layout);

/// Holds x of one pass's chunks for each layer, at most max_pass_tokens * layers rows of this rank,
/// and writes them to the activations file after the pass.
class ActivationDump {
 public:
  /// Collective. Throws Error on all ranks alike when the file cannot be written.
  ActivationDump(const std::string& path, const io::ActivationLayout& layout,
                 const comm::Communicator& world, int max_chunks);

  /// Where x [tokens, H] of a chunk after a layer goes; null for layers that are not kept.
  float* buffer(int chunk, int layer, std::size_t tokens);
  /// Writes the rows of the pass that has just run, before the batcher's finish_pass(). Of a
  /// sequence that ends there since its logits are not finite, rows up to those: how many come
  /// after them depends on how passes are cut.
  void write(Batcher& batch);
  /// Collective: the file gets its name.
  void close();

 private:
  void write(int chunk_index, const ChunkBatch& chunk, const compute::Segment& segment,
             std::size_t request);

  io::ActivationLayout layout_;
  std::size_t hidden_;
  std::optional<io::ActivationWriter> writer_;
  std::vector<std::vector<float>> buffers_;  // [chunks * layers]
  std::vector<std::int32_t> ended_;          // requests that ended in the pass being written
};

}  // namespace atl
