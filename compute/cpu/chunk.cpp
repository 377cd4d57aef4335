#include "compute/cpu/chunk.hpp"

#include <algorithm>
#include <utility>

#include "compute/cpu/gemm.hpp"

namespace atl::compute {

namespace {

template <class T>
std::int64_t bytes_of(const std::vector<T>& values) {
  return static_cast<std::int64_t>(values.size() * sizeof(T));
}

}  // namespace

CpuChunk::CpuChunk(const BackendOptions& options, std::shared_ptr<std::int64_t> account)
    : row_bytes_(options.shape.hidden * static_cast<std::int64_t>(size_of(options.dtype))),
      account_(std::move(account)) {
  const ModelShape& shape = options.shape;
  const std::int64_t tokens_capacity = whole_tiles(options.max_chunk_tokens);
  const auto rows = [this](std::int64_t count) {
    return AlignedBuffer(static_cast<std::size_t>(count * row_bytes_));
  };
  x = rows(tokens_capacity);
  const auto wide_rows = [&](int width) {
    return AlignedBuffer(static_cast<std::size_t>(tokens_capacity * width) *
                         size_of(options.dtype));
  };
  qkv = wide_rows(shape.q_width() + 2 * shape.kv_width());
  context = wide_rows(shape.q_width());
  const std::int64_t pairs = tokens_capacity * shape.top_k;
  router_logits.resize(static_cast<std::size_t>(tokens_capacity * shape.num_experts));
  experts.resize(static_cast<std::size_t>(pairs));
  weights.resize(static_cast<std::size_t>(pairs));
  slots.resize(static_cast<std::size_t>(pairs));
  counts.resize(static_cast<std::size_t>(shape.num_experts));
  next_slot.resize(static_cast<std::size_t>(shape.num_experts));
  send_ = rows(pairs);
  combined_ = rows(pairs);
  dispatch_send = send_.data();
  combine_recv = combined_.data();
  packed_counts = counts;
  *account_ += bytes();
}

CpuChunk::~CpuChunk() {
  *account_ -= bytes();
}

void CpuChunk::reserve_receive(std::int64_t rows) {
  if (rows <= receive_capacity) return;
  *account_ -= bytes();
  receive_capacity = std::max({rows, 2 * receive_capacity, std::int64_t{tile_rows}});
  const auto new_bytes = static_cast<std::size_t>(receive_capacity * row_bytes_);
  received_ = AlignedBuffer();
  results_ = AlignedBuffer();
  received_ = AlignedBuffer(new_bytes);
  results_ = AlignedBuffer(new_bytes);
  dispatch_recv = received_.data();
  combine_send = results_.data();
  *account_ += bytes();
}

void CpuChunk::reserve_inner(std::int64_t bytes) {
  if (bytes <= inner.bytes()) return;
  *account_ -= this->bytes();
  inner = AlignedBuffer(static_cast<std::size_t>(bytes));
  *account_ += this->bytes();
}

std::int64_t CpuChunk::bytes() const {
  return x.bytes() + qkv.bytes() + context.bytes() + inner.bytes() + send_.bytes() +
         combined_.bytes() + received_.bytes() + results_.bytes() + bytes_of(router_logits) +
         bytes_of(experts) + bytes_of(weights) + bytes_of(slots);
}

}  // namespace atl::compute
