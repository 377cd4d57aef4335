#include "app/run/activations.hpp"

#include <algorithm>

#include "comm/watchdog.hpp"

namespace atl {

ActivationDump::ActivationDump(const std::string& path, const io::ActivationLayout& layout,
                               const comm::Communicator& world, int max_chunks)
    : layout_(layout),
      hidden_(static_cast<std::size_t>(layout.hidden)),
      buffers_(static_cast<std::size_t>(max_chunks) * layout.layers.size()) {
  const comm::Waiting waiting("creating the activations file");
  writer_.emplace(path, layout, world.fortran_handle());
}

float* ActivationDump::buffer(int chunk, int layer, std::size_t tokens) {
  const auto found = std::lower_bound(layout_.layers.begin(), layout_.layers.end(), layer);
  if (found == layout_.layers.end() || *found != layer) return nullptr;
  const auto at = static_cast<std::size_t>(found - layout_.layers.begin());
  auto& x = buffers_[static_cast<std::size_t>(chunk) * layout_.layers.size() + at];
  if (x.size() < tokens * hidden_) x.resize(tokens * hidden_);
  return x.data();
}

void ActivationDump::write(Batcher& batch) {
  rows_.for_each(batch, [this](int index, const ChunkBatch& chunk, const compute::Segment& segment,
                               std::size_t request) { write(index, chunk, segment, request); });
}

void ActivationDump::write(int chunk_index, const ChunkBatch& chunk,
                           const compute::Segment& segment, std::size_t request) {
  const auto first_buffer = static_cast<std::size_t>(chunk_index) * layout_.layers.size();
  const auto first = static_cast<std::size_t>(segment.first_row);
  const auto rows = static_cast<std::size_t>(segment.num_rows);
  writer_->write_tokens(request, segment.first_position,
                        std::span(chunk.tokens).subspan(first, rows));
  for (std::size_t layer = 0; layer < layout_.layers.size(); ++layer) {
    const std::span<const float> x(buffers_[first_buffer + layer]);
    writer_->write(layer, request, segment.first_position,
                   x.subspan(first * hidden_, rows * hidden_));
  }
}

void ActivationDump::close() {
  const comm::Waiting waiting("closing the activations file");
  writer_->close();
}

}  // namespace atl
