// A chunk on the device: its buffers and what is uploaded for it before each pass.

#include <algorithm>
#include <cstring>

#include "compute/cuda/error.hpp"
#include "compute/cuda/model.hpp"
#include "compute/error.hpp"

namespace atl::compute::cuda {

namespace {

constexpr std::size_t part_alignment = 16;

std::size_t aligned(std::size_t bytes) {
  return (bytes + part_alignment - 1) / part_alignment * part_alignment;
}

/// Puts parts one after the other into an upload, which lies at the same offsets on the device.
class Packer {
 public:
  Packer(std::byte* host, std::byte* device, std::size_t capacity)
      : host_(host), device_(device), capacity_(capacity) {}

  /// Room for `count` elements on the host; `on_device` is where they will be.
  template <class T>
  T* add(std::size_t count, const T*& on_device) {
    const std::size_t at = bytes_;
    bytes_ += aligned(count * sizeof(T));
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

}  // namespace

std::int64_t most_pages(const BackendOptions& options) {
  const std::int64_t of_sequence =
      (options.shape.max_positions + options.page_tokens - 1) / options.page_tokens;
  return std::min(of_sequence, std::max<std::int64_t>(options.num_pages, 1));
}

std::size_t input_bytes(const BackendOptions& options) {
  const auto tokens = static_cast<std::size_t>(options.max_chunk_tokens);
  const auto tiles =
      static_cast<std::size_t>(max_attention_tiles(options.shape, options.max_chunk_tokens));
  const auto pages = tokens * static_cast<std::size_t>(most_pages(options));
  return 3 * aligned(tokens * sizeof(std::int32_t)) + aligned(pages * sizeof(std::int32_t)) +
         aligned(tiles * sizeof(AttentionTile)) + aligned(tokens * sizeof(AttentionMerge));
}

std::size_t head_bytes(const BackendOptions& options) {
  return static_cast<std::size_t>(options.max_chunk_tokens) * (sizeof(Draw) + sizeof(std::int32_t));
}

std::int64_t row_bytes(const BackendOptions& options) {
  return options.shape.hidden * static_cast<std::int64_t>(size_of(options.dtype));
}

std::int64_t receive_bytes(std::int64_t rows, std::int64_t row_bytes) {
  constexpr auto alignment = static_cast<std::int64_t>(Arena::alignment);
  return 2 * ((rows * row_bytes + alignment - 1) / alignment * alignment);
}

std::int64_t inner_bytes(const BackendOptions& options, std::int64_t receive_rows) {
  if (!options.split_experts) return 0;
  const std::int64_t local = options.part.most_experts();
  const std::int64_t rows =
      receive_rows + options.max_chunk_tokens * std::min<std::int64_t>(options.shape.top_k, local);
  // Each tile of rows begins aligned; an expert has a tile more than its full ones, and those of
  // long runs have at least a thousand rows.
  const std::int64_t tiles = 2 * local + rows / 64;
  return rows * options.shape.moe_intermediate * static_cast<std::int64_t>(size_of(options.dtype)) +
         tiles * static_cast<std::int64_t>(Arena::alignment);
}

ChunkMemory::ChunkMemory(const BackendOptions& options, Arena& arena) {
  const ModelShape& shape = options.shape;
  const std::int64_t tokens = options.max_chunk_tokens;
  const std::int64_t pairs = tokens * shape.top_k;
  const auto rows_of = [&](std::int64_t count, std::int64_t width) {
    return arena.take_bytes(static_cast<std::size_t>(count * width) * size_of(options.dtype));
  };
  x = rows_of(tokens, shape.hidden);
  normed = rows_of(tokens, shape.hidden);
  qkv = rows_of(tokens, shape.q_width() + 2 * shape.kv_width());
  context = rows_of(tokens, shape.q_width());
  send = rows_of(pairs, shape.hidden);
  combined = rows_of(pairs, shape.hidden);
  experts = arena.take<std::int32_t>(pairs);
  weights = arena.take<float>(pairs);
  slots = arena.take<std::int32_t>(pairs);
  counts = arena.take<std::int32_t>(shape.num_experts);
  inputs = arena.take<std::byte>(static_cast<std::int64_t>(input_bytes(options)));
  head = arena.take<std::byte>(static_cast<std::int64_t>(head_bytes(options)));
  logprobs = arena.take<float>(tokens);
  sampled = arena.take<SampledToken>(tokens);
}

UploadRing::UploadRing(std::size_t bytes)
    : bytes_(aligned(bytes)),
      memory_(2 * bytes_),
      copied_{CudaEvent(CudaEvent::Timing::off), CudaEvent(CudaEvent::Timing::off)} {}

std::byte* UploadRing::next() {
  slot_ = 1 - slot_;
  wait_for(copied_[slot_]);
  return memory_.as<std::byte>() + static_cast<std::size_t>(slot_) * bytes_;
}

void UploadRing::copy(const Stream& stream, void* to, std::size_t bytes) {
  if (bytes == 0) return;
  check(cudaMemcpyAsync(to, memory_.as<std::byte>() + static_cast<std::size_t>(slot_) * bytes_,
                        bytes, cudaMemcpyHostToDevice, stream.raw()),
        "cudaMemcpyAsync");
  copied_[slot_].record(stream);
}

CudaChunk::CudaChunk(const BackendOptions& options, int index,
                     std::shared_ptr<std::int64_t> account)
    : counts(static_cast<std::size_t>(options.shape.num_experts) * sizeof(std::int32_t)),
      head_uploads(head_bytes(options)),
      sampled(static_cast<std::size_t>(options.max_chunk_tokens) * sizeof(SampledToken)),
      options_(options),
      account_(std::move(account)),
      uploads_(input_bytes(options)) {
  order.index = index;
  Arena plan;
  ChunkMemory(options, plan);
  device_ = DeviceBuffer(plan.bytes(), "the buffers of a chunk");
  Arena arena(device_.data());
  memory = ChunkMemory(options, arena);
  dispatch_send = memory.send;
  combine_recv = memory.combined;
  std::fill_n(counts.as<std::int32_t>(), options.shape.num_experts, 0);
  packed_counts = {counts.as<std::int32_t>(), static_cast<std::size_t>(options.shape.num_experts)};
  take_inner();
  *account_ += static_cast<std::int64_t>(device_.bytes() + inner.bytes());
  reserve_receive(options.receive_rows);
}

CudaChunk::~CudaChunk() {
  *account_ -= static_cast<std::int64_t>(device_.bytes() + received_.bytes() + inner.bytes());
}

void CudaChunk::reserve_receive(std::int64_t rows) {
  if (rows <= receive_capacity) return;
  *account_ -= static_cast<std::int64_t>(received_.bytes() + inner.bytes());
  receive_capacity = std::max(rows, std::min(2 * receive_capacity, options_.most_receive_rows));
  received_ = DeviceBuffer();
  received_ =
      DeviceBuffer(static_cast<std::size_t>(receive_bytes(receive_capacity, row_bytes(options_))),
                   "received rows");
  take_inner();
  dispatch_recv = received_.data();
  combine_send = static_cast<std::byte*>(received_.data()) + received_.bytes() / 2;
  *account_ += static_cast<std::int64_t>(received_.bytes() + inner.bytes());
}

void CudaChunk::take_inner() {
  inner = DeviceBuffer();
  inner = DeviceBuffer(static_cast<std::size_t>(inner_bytes(options_, receive_capacity)),
                       "inner rows of experts");
}

void CudaChunk::upload(const BackendOptions& options, int multiprocessors, const Stream& stream) {
  const auto num_rows = tokens.size();
  const auto num_segments = segments.size();
  plan_attention(options.shape, segments, multiprocessors,
                 attention_workspace_rows(options.shape, options.max_chunk_tokens), plan_);
  int max_pages = 0;
  for (const Segment& segment : segments) {
    const int length = segment.first_position + segment.num_rows;
    require(length <= num_positions(options),
            "a sequence of {} tokens is longer than the {} positions that model and KV cache have",
            length, num_positions(options));
    max_pages = std::max(max_pages, (length + options.page_tokens - 1) / options.page_tokens);
  }
  Packer packer(uploads_.next(), memory.inputs, input_bytes(options));
  std::copy(tokens.begin(), tokens.end(), packer.add(num_rows, inputs.tokens));
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
    const int used = (length + options.page_tokens - 1) / options.page_tokens;
    std::int32_t* const row = pages + s * static_cast<std::size_t>(max_pages);
    std::copy_n(segment.pages, used, row);
    std::fill(row + used, row + max_pages, 0);
  }
  std::copy(plan_.tiles.begin(), plan_.tiles.end(), packer.add(plan_.tiles.size(), inputs.tiles));
  std::copy(plan_.merges.begin(), plan_.merges.end(),
            packer.add(plan_.merges.size(), inputs.merges));
  inputs.num_wide = plan_.num_wide;
  inputs.num_narrow = plan_.num_narrow;
  inputs.num_merges = static_cast<int>(plan_.merges.size());
  uploads_.copy(stream, memory.inputs, packer.bytes());
}

}  // namespace atl::compute::cuda
