#include "app/run/activations.hpp"

#include <algorithm>

#include "comm/watchdog.hpp"

namespace atl {

ActivationDump::ActivationDump(const std::string& path, const io::ActivationLayout& layout,
                               const Groups& groups, const ModelShape& shape, int max_chunks)
    : layout_(layout),
      hidden_(static_cast<std::size_t>(layout.hidden)),
      stage_(layers_of_stage(shape.num_layers, groups.job().stage_of(groups.world().rank()),
                             groups.job().division().pp)),
      buffers_(static_cast<std::size_t>(max_chunks) * layout.layers.size()),
      rows_(groups.of(Share::owner).rank(), groups.job().division().tp) {
  const comm::Waiting waiting("creating the activations file");
  writer_.emplace(path, layout, groups.world().fortran_handle());
}

float* ActivationDump::buffer(int chunk, int layer, std::size_t tokens) {
  const auto found = std::lower_bound(layout_.layers.begin(), layout_.layers.end(), layer);
  if (found == layout_.layers.end() || *found != layer) return nullptr;
  const auto at = static_cast<std::size_t>(found - layout_.layers.begin());
  auto& x = buffers_[static_cast<std::size_t>(chunk) * layout_.layers.size() + at];
  if (x.size() < tokens * hidden_) x.resize(tokens * hidden_);
  return x.data();
}

void ActivationDump::write(Batcher& batch, int first_slot) {
  rows_.for_each(
      batch, first_slot,
      [this](int index, const compute::Segment& segment, std::span<const std::int32_t> tokens,
             std::size_t request) { write(index, segment, tokens, request); });
}

void ActivationDump::write(int chunk_index, const compute::Segment& segment,
                           std::span<const std::int32_t> tokens, std::size_t request) {
  const auto first_buffer = static_cast<std::size_t>(chunk_index) * layout_.layers.size();
  const auto first = static_cast<std::size_t>(segment.first_row);
  const auto rows = static_cast<std::size_t>(segment.num_rows);
  if (stage_.first == 0) writer_->write_tokens(request, segment.first_position, tokens);
  for (std::size_t layer = 0; layer < layout_.layers.size(); ++layer) {
    if (layout_.layers[layer] < stage_.first || layout_.layers[layer] >= stage_.end) continue;
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
