#include "app/run/routing_record.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "comm/watchdog.hpp"
#include "compute/clock.hpp"
#include "compute/error.hpp"

namespace atl {

namespace {

/// A request's choices are written once there are so many.
constexpr std::size_t most_gathered = 1 << 16;

/// Adds the time of a scope to a sum.
class Timed {
 public:
  explicit Timed(double& seconds) : seconds_(seconds), begin_(now_seconds()) {}
  ~Timed() { seconds_ += now_seconds() - begin_; }
  Timed(const Timed&) = delete;
  Timed& operator=(const Timed&) = delete;

 private:
  double& seconds_;
  double begin_;
};

}  // namespace

std::vector<int> moe_layers_of(const ModelShape& shape) {
  std::vector<int> layers;
  for (int layer = 0; layer < shape.num_layers; ++layer) {
    if (!shape.is_dense(layer)) layers.push_back(layer);
  }
  return layers;
}

std::vector<int> numbers_of_layers(const std::vector<int>& moe_layers, int num_layers) {
  std::vector<int> numbers(static_cast<std::size_t>(num_layers), -1);
  for (std::size_t i = 0; i < moe_layers.size(); ++i) {
    numbers[static_cast<std::size_t>(moe_layers[i])] = static_cast<int>(i);
  }
  return numbers;
}

io::RoutingLayout routing_layout(const ModelShape& shape, std::uint64_t model,
                                 const RequestRows& requests) {
  io::RoutingLayout layout;
  layout.model = fmt::format("{:016x}", model);
  layout.num_experts = shape.num_experts;
  layout.top_k = shape.top_k;
  layout.layers = moe_layers_of(shape);
  layout.requests = requests.ids;
  layout.first_row = requests.first_row;
  return layout;
}

RoutingRecord::RoutingRecord(const std::string& path, const io::RoutingLayout& layout,
                             const comm::Communicator& world, int num_layers, int max_chunks,
                             bool resume, const std::vector<Kept>& kept)
    : path_(path),
      layout_(layout),
      num_layers_(num_layers),
      world_(world),
      index_of_layer_(numbers_of_layers(layout.layers, num_layers)),
      chosen_(static_cast<std::size_t>(max_chunks) * layout.layers.size()) {
  const bool goes_on =
      resume && std::any_of(kept.begin(), kept.end(), [](Kept k) { return k != Kept::nothing; });
  world_.agree([&] {
    if (world_.rank() != 0) return;
    if (goes_on) {
      io::reopen_routing_file(path_, layout_);
    } else {
      io::create_routing_file(path_, layout_);
    }
  });
  world_.agree([&] {
    writer_.emplace(path_, layout_);
    if (goes_on) check_finished(kept);
  });
}

/// Each rank looks at a part of the requests.
void RoutingRecord::check_finished(const std::vector<Kept>& kept) const {
  const auto stride = static_cast<std::size_t>(world_.size());
  for (auto r = static_cast<std::size_t>(world_.rank()); r < kept.size(); r += stride) {
    if (kept[r] != Kept::all || layout_.first_row[r] == layout_.first_row[r + 1]) continue;
    const std::int64_t rows = writer_->num_rows(r);
    require(rows > 0 && writer_->summer_of(r, rows).sums() == writer_->sums(r),
            "cannot go on with {}: request \"{}\" is finished, but its routing is not whole there; "
            "start anew without --resume, or leave --record-routing away",
            io::unfinished_routing_file(path_), layout_.requests[r]);
  }
}

RoutingRecord::Place RoutingRecord::place(int chunk, int layer, std::size_t tokens) {
  const auto number = static_cast<std::size_t>(layer);
  if (number >= index_of_layer_.size() || index_of_layer_[number] < 0) return {};
  Chosen& chosen = chosen_[static_cast<std::size_t>(chunk) * layout_.layers.size() +
                           static_cast<std::size_t>(index_of_layer_[number])];
  const std::size_t pairs = tokens * static_cast<std::size_t>(layout_.top_k);
  if (chosen.experts.size() < pairs) {
    chosen.experts.resize(pairs);
    chosen.weights.resize(pairs);
  }
  return {chosen.experts.data(), chosen.weights.data()};
}

void RoutingRecord::take(Batcher& batch, int first_slot) {
  const Timed timed(cost_.seconds);
  rows_.for_each(batch, first_slot,
                 [this](int chunk, const compute::Segment& segment, auto, std::size_t request) {
                   append(chunk, segment, request);
                 });
}

LayerRange RoutingRecord::layers_of(const Groups& groups, int stage) const {
  const int all = static_cast<int>(layout_.layers.size());
  const LayerRange range = layers_of_stage(num_layers_, stage, groups.job().division().pp);
  LayerRange own{all, all};
  for (int i = all - 1; i >= 0; --i) {
    const int layer = layout_.layers[static_cast<std::size_t>(i)];
    if (layer >= range.end) own.end = i;
    if (layer >= range.first) own.first = i;
  }
  return own;
}

/// What this rank has: chunk by chunk, layer by layer, experts and weights of its rows.
std::string RoutingRecord::packed(Batcher& batch, int first_slot, const Groups& groups) const {
  std::string text;
  const LayerRange layers = layers_of(groups, groups.job().stage_of(world_.rank()));
  const int members = groups.job().division().tp;
  for (int c = 0; c < batch.num_chunks(); ++c) {
    const auto rows = rows_of_member(static_cast<std::int64_t>(batch.chunk(c).tokens.size()),
                                     groups.of(Share::owner).rank(), members);
    const auto pairs = static_cast<std::size_t>(rows.size() * layout_.top_k);
    for (int layer = layers.first; layer < layers.end && pairs > 0; ++layer) {
      const Chosen& of = chosen_[static_cast<std::size_t>(first_slot + c) * layout_.layers.size() +
                                 static_cast<std::size_t>(layer)];
      text.append(reinterpret_cast<const char*>(of.experts.data()), pairs * sizeof(std::int32_t));
      text.append(reinterpret_cast<const char*>(of.weights.data()), pairs * sizeof(float));
    }
  }
  return text;
}

void RoutingRecord::unpack(const std::string& text, Batcher& batch, int first_slot,
                           const LayerRange& layers, int place, int members) {
  const char* from = text.data();
  const auto take = [&from](auto& list, std::size_t first, std::size_t count) {
    if (list.size() < first + count) list.resize(first + count);
    std::memcpy(list.data() + first, from, count * sizeof(list[0]));
    from += count * sizeof(list[0]);
  };
  for (int c = 0; c < batch.num_chunks(); ++c) {
    const auto rows =
        rows_of_member(static_cast<std::int64_t>(batch.chunk(c).tokens.size()), place, members);
    const auto pairs = static_cast<std::size_t>(rows.size() * layout_.top_k);
    for (int layer = layers.first; layer < layers.end && pairs > 0; ++layer) {
      Chosen& of = chosen(first_slot + c, layer);
      const auto first = static_cast<std::size_t>(rows.first * layout_.top_k);
      take(of.experts, first, pairs);
      take(of.weights, first, pairs);
    }
  }
  require(from == text.data() + text.size(), "internal: choices of {} bytes too many",
          text.data() + text.size() - from);
}

void RoutingRecord::share(Batcher& batch, int first_slot, const Groups& groups) {
  const Timed timed(cost_.seconds);
  const comm::Communicator& sequences = groups.of(Share::sequences);
  if (sequences.size() == 1) return;
  const auto texts = sequences.gather(packed(batch, first_slot, groups), 0);
  const int members = groups.job().division().tp;
  for (std::size_t rank = 0; rank < texts.size(); ++rank) {
    const int stage = static_cast<int>(rank) / members;
    unpack(texts[rank], batch, first_slot, layers_of(groups, stage),
           static_cast<int>(rank) % members, members);
  }
}

/// The request, whose next choices are those at `position`. One that an earlier run had begun
/// continues behind what that run has written.
RoutingRecord::Open& RoutingRecord::open(std::size_t request, std::int64_t position) {
  const auto [found, is_new] = open_.try_emplace(request);
  Open& open = found->second;
  if (is_new && position > 0) {
    open.written = position;
    open.summer = writer_->summer_of(request, position);
  }
  return open;
}

void RoutingRecord::append(int chunk, const compute::Segment& segment, std::size_t request) {
  Open& to = open(request, segment.first_position);
  const auto choices = static_cast<std::size_t>(layout_.row_choices());
  const auto top_k = static_cast<std::size_t>(layout_.top_k);
  const auto rows = static_cast<std::size_t>(segment.num_rows);
  const std::size_t before = to.experts.size();
  require(to.written + static_cast<std::int64_t>(before / choices) == segment.first_position,
          "internal: the routing of request {} has a gap at position {}", request,
          segment.first_position);
  to.experts.resize(before + rows * choices);
  to.weights.resize(before + rows * choices);
  for (std::size_t layer = 0; layer < layout_.layers.size(); ++layer) {
    const Chosen& chosen = chosen_[static_cast<std::size_t>(chunk) * layout_.layers.size() + layer];
    const auto* experts =
        chosen.experts.data() + static_cast<std::size_t>(segment.first_row) * top_k;
    const auto* weights =
        chosen.weights.data() + static_cast<std::size_t>(segment.first_row) * top_k;
    for (std::size_t row = 0; row < rows; ++row) {
      const std::size_t at = before + row * choices + layer * top_k;
      for (std::size_t j = 0; j < top_k; ++j) {
        to.experts[at + j] = static_cast<std::uint16_t>(experts[row * top_k + j]);
        to.weights[at + j] = weights[row * top_k + j];
      }
    }
  }
  cost_.rows += segment.num_rows;
  if (to.experts.size() >= most_gathered) write(request, to);
}

void RoutingRecord::write(std::size_t request, Open& open) {
  if (open.experts.empty()) return;
  writer_->write(request, open.written, open.experts, open.weights);
  open.summer.add(open.experts, open.weights);
  open.written += static_cast<std::int64_t>(open.experts.size()) / layout_.row_choices();
  writer_->set_rows(request, open.written, open.summer.sums());
  open.experts.clear();
  open.weights.clear();
}

void RoutingRecord::finish(std::span<const FinishedRequest> requests) {
  const Timed timed(cost_.seconds);
  for (const FinishedRequest& done : requests) {
    const auto found = open_.find(static_cast<std::size_t>(done.request));
    if (found == open_.end()) continue;
    write(found->first, found->second);
    open_.erase(found);
  }
}

void RoutingRecord::flush() {
  const Timed timed(cost_.seconds);
  for (auto& [request, open] : open_) write(request, open);
}

void RoutingRecord::close() {
  const comm::Waiting waiting("closing the routing file");
  cost_.bytes = writer_->bytes_written();
  writer_.reset();
  world_.agree([] {});  // all have written
  world_.agree([this] {
    if (world_.rank() == 0) io::finish_routing_file(path_);
  });
}

}  // namespace atl
