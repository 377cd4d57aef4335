#include "app/run/activations.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "comm/watchdog.hpp"

namespace atl {

io::ActivationLayout activation_layout(const std::vector<io::Request>& requests, Mode mode,
                                       int max_tokens) {
  io::ActivationLayout layout;
  layout.first_row.push_back(0);
  for (const io::Request& request : requests) {
    const int new_tokens = mode == Mode::score ? 1 : request.max_tokens.value_or(max_tokens);
    const auto rows = static_cast<std::int64_t>(request.tokens.size()) + new_tokens - 1;
    layout.requests.push_back(request.id);
    layout.first_row.push_back(layout.first_row.back() + (request.error.empty() ? rows : 0));
  }
  return layout;
}

io::ActivationLayout shared_layout(const comm::Communicator& world, io::ActivationLayout layout) {
  using nlohmann::json;
  const auto bytes = json::to_cbor(json({layout.requests, layout.first_row}));
  const json all = json::from_cbor(world.broadcast({bytes.begin(), bytes.end()}, 0));
  layout.requests = all[0].get<std::vector<std::string>>();
  layout.first_row = all[1].get<std::vector<std::int64_t>>();
  return layout;
}

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
  ended_.clear();
  for (int c = 0; c < batch.num_chunks(); ++c) {
    const ChunkBatch& chunk = batch.chunk(c);
    std::size_t head = 0;
    for (std::size_t s = 0; s < chunk.segments.size(); ++s) {
      compute::Segment segment = chunk.segments[s];
      const std::int32_t request = chunk.requests[s];
      if (std::find(ended_.begin(), ended_.end(), request) != ended_.end()) segment.num_rows = 0;
      for (; head < chunk.head.size(); ++head) {
        const std::int32_t row = chunk.head[head].row - segment.first_row;
        if (row >= chunk.segments[s].num_rows) break;
        if (row >= segment.num_rows || chunk.finite(head)) continue;
        segment.num_rows = row + 1;
        ended_.push_back(request);
      }
      if (segment.num_rows > 0) write(c, chunk, segment, static_cast<std::size_t>(request));
    }
  }
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
