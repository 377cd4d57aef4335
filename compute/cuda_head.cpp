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
    check(cudaMemcpyAsync(out + i * vocab, work_.vocab[half], count * vocab * sizeof(float),
                          cudaMemcpyDeviceToHost, copying.raw()),
          "cudaMemcpyAsync");
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
  check(cudaMemcpyAsync(chunk.logprobs.data(), chunk.memory.logprobs, rows.size() * sizeof(float),
                        cudaMemcpyDeviceToHost, copying.raw()),
        "cudaMemcpyAsync");
  chunk.delivery = {chunk.logprobs.as<float>(), out, rows.size()};
  op.run_on_host(chunk.deliver);
  return op.close();
}

Event CudaLayers::host_task(const std::function<void()>& task) {
  Op op(queue_, "host task", -1, nullptr);
  op.begin(StreamId::host);
  op.run_on_host(task);
  return op.close();
}

}  // namespace atl::compute::cuda
