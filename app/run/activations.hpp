#pragma once
// Keeps x after chosen layers of a run, for comparison with other runs.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "app/run/batcher.hpp"
#include "app/run/computed_rows.hpp"
#include "app/run/groups.hpp"
#include "io/activation_file.hpp"

namespace atl {

/// Holds x of one pass's chunks for each layer, at most max_pass_tokens * layers rows of this rank,
/// and writes them to the activations file after the pass.
class ActivationDump {
 public:
  /// Collective. Throws Error on all ranks alike when the file cannot be written.
  ActivationDump(const std::string& path, const io::ActivationLayout& layout, const Groups& groups,
                 const ModelShape& shape, int max_chunks);

  /// Where x [tokens, H] of a chunk after a layer goes; null for layers that are not kept.
  float* buffer(int chunk, int layer, std::size_t tokens);
  /// Writes the ComputedRows of the pass that has just run, before the batcher's finish_pass().
  void write(Batcher& batch, int first_slot = 0);
  /// Collective: the file gets its name.
  void close();

 private:
  void write(int chunk_index, const compute::Segment& segment, std::span<const std::int32_t> tokens,
             std::size_t request);

  io::ActivationLayout layout_;
  std::size_t hidden_;
  LayerRange stage_;  // whose x this rank has
  std::optional<io::ActivationWriter> writer_;
  std::vector<std::vector<float>> buffers_;  // [chunks * layers]
  ComputedRows rows_;
};

}  // namespace atl
