// A chunk on the device: its buffers and what is uploaded for it before each pass.

#include "compute/cuda/chunk.hpp"

#include <algorithm>
#include <cstring>

#include "compute/cuda/error.hpp"
#include "compute/cuda/plan/kv.hpp"
#include "compute/error.hpp"

namespace atl::compute::cuda {

namespace {

/// Puts parts one after the other into an upload, which lies at the same offsets on the device.
class Packer {
 public:
  Packer(std::byte* host, std::byte* device, std::size_t capacity)
      : host_(host), device_(device), capacity_(capacity) {}

  /// Room for `count` elements on the host; `on_device` is where they will be.
  template <class T>
  T* add(std::size_t count, const T*& on_device) {
    const std::size_t at = bytes_;
    bytes_ += upload_aligned(count * sizeof(T));
    require(bytes_ <= capacity_, "internal: a chunk's inputs take more than {} bytes", capacity_);
    on_device = reinterpret_cast<const T*>(device_ + at);
    return reinterpret_cast<T*>(host_ + at);
  }
  std::size_t bytes() const { return bytes_; }

 private:
  std::byte* host_;
  std::byte* device_;
  std::size_t capacity_;
  std::size_t bytes_ = 0;
};

/// Room for `wanted` rows, where there was some for `before`.
std::int64_t grown(std::int64_t wanted, std::int64_t before) {
  return wanted <= before ? before : std::max(wanted, 2 * before);
}

}  // namespace

CudaChunk::CudaChunk(const BackendOptions& options, int index,
                     std::shared_ptr<std::int64_t> account, CudaMemory& retired)
    : counts(static_cast<std::size_t>(most_counts(options)) * sizeof(std::int32_t)),
      head_uploads(head_bytes(options)),
      sampled(static_cast<std::size_t>(most_outcomes(options)) * sizeof(SampledToken)),
      options_(options),
      account_(std::move(account)),
      retired_(retired),
      uploads_(input_bytes(options)),
      plan_(options) {
  order.index = index;
  device_ = DeviceBuffer(planned_bytes<ChunkMemory>(options), "the buffers of a chunk");
  Arena arena(device_.data());
  memory = ChunkMemory(options, arena);
  x = memory.x;
  dispatch_send = memory.send;
  combine_recv = memory.combined;
  output = options.part.attention.usual_output();
  normed = memory.shared.normed;
  head_sums = memory.shared.head_sums;
  heads_send = memory.shared.heads_send;
  heads_recv = memory.shared.heads_recv;
  output_send = memory.shared.output_send;
  output_recv = memory.shared.output_recv;
  across_send = memory.across_send;
  across_return = memory.across_return;
  std::fill_n(counts.as<std::int32_t>(), most_counts(options), 0);
  packed_counts = {counts.as<std::int32_t>(), static_cast<std::size_t>(options.part.most_places())};
  if (options.across) take_forward(first_forward_room(options));
  take_inner();
  take_experts(options.expert_room);
  *account_ += bytes();
  reserve_receive(options.receive_rows);
}

CudaChunk::~CudaChunk() {
  *account_ -= bytes();
}

std::int64_t CudaChunk::bytes() const {
  return static_cast<std::int64_t>(device_.bytes() + received_.bytes() + forward_.bytes() +
                                   experts_.bytes() + inner.bytes() + offsets_.bytes() +
                                   given_up_.bytes());
}

void CudaChunk::reserve_receive(std::int64_t rows) {
  if (rows <= receive_capacity) return;
  *account_ -= bytes();
  receive_capacity = std::max(rows, std::min(2 * receive_capacity, options_.most_receive_rows));
  retire(received_);
  received_ =
      DeviceBuffer(static_cast<std::size_t>(receive_bytes(receive_capacity, row_bytes(options_))),
                   "received rows");
  take_inner();
  dispatch_recv = received_.data();
  combine_send = static_cast<std::byte*>(received_.data()) + received_.bytes() / 2;
  *account_ += bytes();
}

void CudaChunk::reserve_experts(const ExpertRoom& room) {
  const ExpertRoom more = {grown(room.all, expert_room_.all), grown(room.own, expert_room_.own)};
  if (more == expert_room_) return;
  *account_ -= bytes();
  take_experts(more);
  *account_ += bytes();
}

void CudaChunk::take_experts(const ExpertRoom& room) {
  expert_room_ = room;
  Arena plan;
  ExpertMemory(options_, plan, room);
  retire(experts_);
  experts_ = DeviceBuffer(plan.bytes(), "rows of shared experts");
  Arena arena(experts_.data());
  const ExpertMemory taken(options_, arena, room);
  expert_rows = taken.rows;
  inner_rows = taken.inner;
  down_send = taken.send;
  down_recv = taken.recv;
}

void CudaChunk::reserve_across(const NodeRows& rows, std::int64_t forwarded) {
  const ForwardRoom room = {grown(rows.arrived, room_.arrived),
                            grown(rows.arrived_returns, room_.returned),
                            grown(forwarded, room_.forwarded)};
  if (room == room_) return;
  *account_ -= bytes();
  const bool more_forwarded = room.forwarded > room_.forwarded;
  take_forward(room);
  if (more_forwarded) take_inner();
  *account_ += bytes();
}

void CudaChunk::take_forward(const ForwardRoom& room) {
  room_ = room;
  Arena plan;
  ForwardMemory(options_, plan, room_);
  retire(forward_);
  forward_ = DeviceBuffer(plan.bytes(), "rows that are forwarded inside the node");
  Arena arena(forward_.data());
  forward = ForwardMemory(options_, arena, room_);
  dispatch_send = forward.send;
  combine_recv = forward.combined;
  across_recv = forward.recv;
  across_done = forward.done;
}

void CudaChunk::take_inner() {
  inner = DeviceBuffer();
  inner = DeviceBuffer(
      static_cast<std::size_t>(inner_bytes(options_, receive_capacity, room_.forwarded)),
      "inner rows of experts");
}

void CudaChunk::set_counts(const ExpertPlaces& places, int num_rows) {
  auto* const values = counts.as<std::int32_t>();
  const auto num_places = static_cast<std::size_t>(places.num_places());
  const auto num_nodes = static_cast<std::size_t>(places.num_nodes());
  packed_counts = {values, num_places};
  node_rows = {values + num_places, num_nodes};
  node_returns = {values + num_places + num_nodes, num_nodes};
  if (num_rows == 0) {
    std::fill_n(values, num_places + 2 * num_nodes, 0);
  } else if (num_nodes == 1) {  // all tokens go there, and their sums come back
    values[num_places] = num_rows;
    values[num_places + 1] = num_rows;
  }
}

void CudaChunk::upload(int multiprocessors, bool by_wgmma, const Stream& stream) {
  const auto num_rows = static_cast<std::size_t>(attention_rows());
  const auto num_segments = segments.size();
  plan_.cut(segments, multiprocessors, by_wgmma);
  int max_pages = 0;
  for (const Segment& segment : segments) {
    const int length = segment.first_position + segment.num_rows;
    require(length <= num_positions(options_),
            "a sequence of {} tokens is longer than the {} positions that model and KV cache have",
            length, num_positions(options_));
    max_pages = std::max(max_pages, (length + options_.page_tokens - 1) / options_.page_tokens);
  }
  Packer packer(uploads_.next(), memory.inputs, input_bytes(options_));
  std::copy(tokens.begin(), tokens.end(), packer.add(tokens.size(), inputs.tokens));
  std::int32_t* const position = packer.add(num_rows, inputs.map.position);
  std::int32_t* const sequence = packer.add(num_rows, inputs.map.sequence);
  std::int32_t* const pages =
      packer.add(num_segments * static_cast<std::size_t>(max_pages), inputs.map.pages);
  inputs.map.max_pages = max_pages;
  for (std::size_t s = 0; s < num_segments; ++s) {
    const Segment& segment = segments[s];
    for (int i = 0; i < segment.num_rows; ++i) {
      position[segment.first_row + i] = segment.first_position + i;
      sequence[segment.first_row + i] = static_cast<std::int32_t>(s);
    }
    const int length = segment.first_position + segment.num_rows;
    const int used = (length + options_.page_tokens - 1) / options_.page_tokens;
    std::int32_t* const row = pages + s * static_cast<std::size_t>(max_pages);
    std::copy_n(segment.pages, used, row);
    std::fill(row + used, row + max_pages, 0);
  }
  std::copy(plan_.tiles.begin(), plan_.tiles.end(), packer.add(plan_.tiles.size(), inputs.tiles));
  std::copy(plan_.merges.begin(), plan_.merges.end(),
            packer.add(plan_.merges.size(), inputs.merges));
  const std::size_t num_generated = plan_.generated.size();
  std::copy(plan_.generated.begin(), plan_.generated.end(),
            packer.add(num_generated, inputs.generated));
  inputs.generated_map = inputs.map;
  const auto pick = [&](const std::int32_t* from, const std::int32_t*& on_device) {
    std::int32_t* const to = packer.add(num_generated, on_device);
    for (std::size_t i = 0; i < num_generated; ++i) to[i] = from[plan_.generated[i]];
  };
  pick(position, inputs.generated_map.position);
  pick(sequence, inputs.generated_map.sequence);
  uploads_.copy(stream, memory.inputs, packer.bytes());
}

void CudaChunk::upload_forced(const Stream& stream) {
  const auto most = static_cast<std::size_t>(options_.max_chunk_tokens * options_.shape.top_k);
  if (!forced_uploads_) forced_uploads_.emplace(most * sizeof(std::int32_t));
  static_assert(sizeof(std::int32_t) == sizeof(float));
  const auto pairs = tokens.size() * static_cast<std::size_t>(options_.shape.top_k);
  std::byte* const host = forced_uploads_->next();
  std::memcpy(host, forced.experts, pairs * sizeof(std::int32_t));
  forced_uploads_->copy(stream, memory.experts, pairs * sizeof(std::int32_t));
  if (forced.weights == nullptr) return;
  // In a slot of its own: two copies, two fillings.
  std::byte* const weights = forced_uploads_->next();
  std::memcpy(weights, forced.weights, pairs * sizeof(float));
  forced_uploads_->copy(stream, memory.weights, pairs * sizeof(float));
}

/// Row by row: a few rows' tables would be less to copy, and more to follow in the kernel.
void CudaChunk::upload_offsets(const Stream& stream) {
  const auto experts = static_cast<std::size_t>(options_.shape.num_experts);
  if (!offset_uploads_) {
    const auto most = static_cast<std::size_t>(options_.max_chunk_tokens);
    *account_ -= bytes();
    offset_uploads_.emplace(most * experts * sizeof(float));
    offsets_ = DeviceBuffer(most * experts * sizeof(float), "offsets on the router's choice");
    given_up_ = DeviceBuffer(most * sizeof(float), "what offsets give up");
    *account_ += bytes();
  }
  std::byte* const host = offset_uploads_->next();
  const std::size_t row_bytes = experts * sizeof(float);
  for (std::size_t t = 0; t < tokens.size(); ++t) {
    const auto table = static_cast<std::size_t>(offsets.table_of_row[t]);
    std::memcpy(host + t * row_bytes, offsets.tables + table * experts, row_bytes);
  }
  offset_uploads_->copy(stream, offsets_.data(), tokens.size() * row_bytes);
}

}  // namespace atl::compute::cuda
