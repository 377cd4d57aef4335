// The head of the CUDA backend: logits and log-probabilities, and their way to the host.

#include <algorithm>
#include <cstring>

#include "compute/cuda_error.hpp"
#include "compute/cuda_layers.hpp"
#include "compute/error.hpp"

namespace atl::compute::cuda {

void CudaLayers::upload_head(const Stream& stream, CudaChunk& chunk,
                             std::span<const std::int32_t> rows,
                             std::span<const std::int32_t> targets) {
  require(rows.size() <= static_cast<std::size_t>(options_.max_chunk_tokens),
          "{} rows of logits are more than the {} tokens of a chunk", rows.size(),
          options_.max_chunk_tokens);
  auto* const host = reinterpret_cast<std::int32_t*>(chunk.head_uploads.next());
  std::copy(rows.begin(), rows.end(), host);
  std::copy(targets.begin(), targets.end(), host + rows.size());
  chunk.head_uploads.copy(stream, chunk.memory.rows,
                          (rows.size() + targets.size()) * sizeof(std::int32_t));
}

/// logits [count, vocab] = lm_head * RMSNorm(x[rows]).
void CudaLayers::head(const Stream& stream, CudaChunk& chunk, const std::int32_t* rows, int count,
                      float* logits) {
  rms_norm(stream.raw(), dtype_, chunk.memory.x, rows, weights_.final_norm, shape_.rms_eps,
           work_.head, count, shape_.hidden);
  gemm_.run(stream, lm_head_, weights_.lm_head, work_.head, count, logits);
}

/// Rows go through in pieces; while one half of the logits travels to the host, the next piece is
/// computed into the other.
Event CudaLayers::logits(CudaChunk& chunk, std::span<const std::int32_t> rows, float* out) {
  Op op(queue_, "head", -1, &chunk.order);
  if (rows.empty()) {
    op.begin(StreamId::compute);
    return op.close();
  }
  upload_head(op.begin(StreamId::copy), chunk, rows, {});
  const Stream& stream = op.begin(StreamId::compute);
  const Stream& copying = op.begin_beside(StreamId::host);
  const auto vocab = static_cast<std::size_t>(shape_.vocab);
  const auto step = static_cast<std::size_t>(work_.vocab_rows);
  const CudaEvent* computed = &chunk.computed;
  std::size_t half = 0;
  for (std::size_t i = 0; i < rows.size(); i += step, half = 1 - half) {
    const std::size_t count = std::min(step, rows.size() - i);
    half_free_[half].hold(stream);
    head(stream, chunk, chunk.memory.rows + i, static_cast<int>(count), work_.vocab[half]);
    computed->record(stream);
    computed->hold(copying);
    to_host(copying, out + i * vocab, work_.vocab[half], count * vocab * sizeof(float));
    half_free_[half].record(copying);
  }
  return op.close();
}

Event CudaLayers::logprobs(CudaChunk& chunk, std::span<const std::int32_t> rows,
                           std::span<const std::int32_t> targets, float* out) {
  Op op(queue_, "head", -1, &chunk.order);
  if (rows.empty()) {
    op.begin(StreamId::compute);
    return op.close();
  }
  for (const std::int32_t target : targets) {
    require(target >= 0 && target < shape_.vocab,
            "cannot score token {} (the vocabulary has ids 0 to {})", target, shape_.vocab - 1);
  }
  upload_head(op.begin(StreamId::copy), chunk, rows, targets);
  const Stream& stream = op.begin(StreamId::compute);
  const std::int32_t* const device_targets = chunk.memory.rows + rows.size();
  half_free_[0].hold(stream);
  const auto step = static_cast<std::size_t>(work_.vocab_rows);
  for (std::size_t i = 0; i < rows.size(); i += step) {
    const int count = static_cast<int>(std::min(step, rows.size() - i));
    head(stream, chunk, chunk.memory.rows + i, count, work_.vocab[0]);
    log_probs(stream.raw(), work_.vocab[0], device_targets + i, chunk.memory.logprobs + i, count,
              shape_.vocab);
  }
  chunk.computed.record(stream);
  const Stream& copying = op.begin_beside(StreamId::host);
  chunk.computed.hold(copying);
  to_host(copying, out, chunk.memory.logprobs, rows.size() * sizeof(float));
  return op.close();
}

namespace {

/// A copy within host memory that follows one from the device.
struct Delivery {
  void* to;
  const void* from;
  std::size_t bytes;
};

void deliver(void* data) {
  const std::unique_ptr<Delivery> delivery(static_cast<Delivery*>(data));
  std::memcpy(delivery->to, delivery->from, delivery->bytes);
}

}  // namespace

void CudaLayers::to_host(const Stream& stream, void* host, const void* device, std::size_t bytes) {
  const auto copy = [&](void* to, const void* from, std::size_t count) {
    check(cudaMemcpyAsync(to, from, count, cudaMemcpyDeviceToHost, stream.raw()),
          "cudaMemcpyAsync");
  };
  if (is_pinned(host)) return copy(host, device, bytes);
  for (std::size_t at = 0; at < bytes; at += bounce_.bytes()) {
    const std::size_t count = std::min(bounce_.bytes(), bytes - at);
    copy(bounce_.data(), static_cast<const std::byte*>(device) + at, count);
    auto delivery = std::make_unique<Delivery>(
        Delivery{static_cast<std::byte*>(host) + at, bounce_.data(), count});
    check(cudaLaunchHostFunc(stream.raw(), deliver, delivery.get()), "cudaLaunchHostFunc");
    delivery.release();  // NOLINT(bugprone-unused-return-value): deliver() owns it now
  }
}

Event CudaLayers::save_x(const CudaChunk& chunk, void* x) {
  Op op(queue_, "save x", -1, &chunk.order);
  const Stream& stream = op.begin(StreamId::host);
  to_host(stream, x, chunk.memory.x, static_cast<std::size_t>(chunk.num_tokens()) * row_bytes());
  return op.close();
}

const std::int32_t* CudaLayers::upload_pages(const Stream& stream,
                                             std::span<const std::int32_t> pages) {
  const auto count = std::min(pages.size(), static_cast<std::size_t>(most_pages(options_)));
  std::copy_n(pages.begin(), count, reinterpret_cast<std::int32_t*>(page_uploads_.next()));
  page_uploads_.copy(stream, work_.pages, count * sizeof(std::int32_t));
  return work_.pages;
}

/// Through the workspace of q, k and v, which holds keys and values of a chunk's tokens at least.
Event CudaLayers::save_kv(int layer, std::span<const std::int32_t> pages, int first_position,
                          int num_positions, void* keys, void* values) {
  Op op(queue_, "save kv", layer, nullptr);
  const Stream& stream = op.begin(StreamId::compute);
  if (num_positions == 0) return op.close();
  const Stream& copying = op.begin_beside(StreamId::host);
  const std::int32_t* const device_pages = upload_pages(stream, pages);
  const std::size_t width = static_cast<std::size_t>(shape_.kv_width()) * size_of(dtype_);
  for (int done = 0; done < num_positions;) {
    const int count = std::min(options_.max_chunk_tokens, num_positions - done);
    const std::size_t bytes = static_cast<std::size_t>(count) * width;
    const std::size_t offset = static_cast<std::size_t>(done) * width;
    auto* const half = static_cast<std::byte*>(work_.qkv) + bytes;
    gather_kv(stream.raw(), dtype_, kv_.layers[static_cast<std::size_t>(layer)], device_pages,
              first_position + done, count, work_.qkv, half);
    kv_moved_.record(stream);
    kv_moved_.hold(copying);
    to_host(copying, static_cast<std::byte*>(keys) + offset, work_.qkv, bytes);
    to_host(copying, static_cast<std::byte*>(values) + offset, half, bytes);
    kv_moved_.record(copying);
    kv_moved_.hold(stream);
    done += count;
  }
  return op.close();
}

Event CudaLayers::load_kv(int layer, std::span<const std::int32_t> pages, int first_position,
                          int num_positions, const void* keys, const void* values) {
  Op op(queue_, "load kv", layer, nullptr);
  const Stream& stream = op.begin(StreamId::compute);
  if (num_positions == 0) return op.close();
  const std::int32_t* const device_pages = upload_pages(stream, pages);
  const std::size_t width = static_cast<std::size_t>(shape_.kv_width()) * size_of(dtype_);
  for (int done = 0; done < num_positions;) {
    const int count = std::min(options_.max_chunk_tokens, num_positions - done);
    const std::size_t bytes = static_cast<std::size_t>(count) * width;
    const std::size_t offset = static_cast<std::size_t>(done) * width;
    auto* const half = static_cast<std::byte*>(work_.qkv) + bytes;
    for (const auto& [to, from] :
         {std::pair<void*, const void*>{work_.qkv, keys}, {half, values}}) {
      check(cudaMemcpyAsync(to, static_cast<const std::byte*>(from) + offset, bytes,
                            cudaMemcpyHostToDevice, stream.raw()),
            "cudaMemcpyAsync");
    }
    scatter_kv(stream.raw(), dtype_, kv_.layers[static_cast<std::size_t>(layer)], device_pages,
               first_position + done, count, work_.qkv, half);
    done += count;
  }
  return op.close();
}

Event CudaLayers::host_task(const std::function<void()>& task) {
  Op op(queue_, "host task", -1, nullptr);
  op.begin(StreamId::host);
  op.run_on_host(task);
  return op.close();
}

}  // namespace atl::compute::cuda
