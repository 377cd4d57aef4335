// The head of the CUDA backend: tokens, log-probabilities and logits, and their way to the host.

#include <algorithm>
#include <cstring>

#include "compute/cuda/error.hpp"
#include "compute/cuda/operations.hpp"
#include "compute/error.hpp"

namespace atl::compute::cuda {

/// What is done with the rows comes first, since it is aligned to more.
CudaLayers::HeadInputs CudaLayers::upload_head(const Stream& stream, CudaChunk& chunk,
                                               std::span<const std::int32_t> rows,
                                               std::span<const SamplingRequest> how,
                                               std::span<const std::int32_t> targets) {
  require(rows.size() <= static_cast<std::size_t>(chunk.max_tokens()),
          "{} rows of logits are more than the {} tokens of a chunk", rows.size(),
          chunk.max_tokens());
  std::byte* const host = chunk.head_uploads.next();
  std::byte* const device = chunk.memory.head;
  auto* const draws = reinterpret_cast<Draw*>(host);
  std::int64_t outcomes = 0;
  for (std::size_t i = 0; i < how.size(); ++i) {
    draws[i] = draw_of(how[i]);
    draws[i].first_outcome = outcomes;
    outcomes += static_cast<std::int64_t>(how[i].outcomes());
  }
  place_changes(how, draws);
  std::copy(targets.begin(), targets.end(), reinterpret_cast<std::int32_t*>(host));
  const std::size_t at = how.size() * sizeof(Draw) + targets.size_bytes();
  std::copy(rows.begin(), rows.end(), reinterpret_cast<std::int32_t*>(host + at));
  chunk.head_uploads.copy(stream, device, at + rows.size_bytes());
  return {reinterpret_cast<const std::int32_t*>(device + at), reinterpret_cast<const Draw*>(device),
          reinterpret_cast<const std::int32_t*>(device)};
}

/// Logits [count, vocab] = lm_head * RMSNorm(x[rows]) in the workspace, in pieces.
template <class Work>
void CudaLayers::for_logits(const Stream& stream, CudaChunk& chunk, const std::int32_t* rows,
                            std::size_t num_rows, const Work& work) {
  const auto step = static_cast<std::size_t>(work_.vocab_rows);
  for (std::size_t first = 0; first < num_rows; first += step) {
    const int count = static_cast<int>(std::min(step, num_rows - first));
    rms_norm(stream.raw(), dtype_, chunk.memory.x, rows + first, weights_.final_norm,
             shape_.rms_eps, work_.head, count, shape_.hidden);
    logits_free_.hold(stream);
    gemm_.run(stream, lm_head_, weights_.lm_head, work_.head, count, work_.logits);
    work(first, count);
  }
}

Event CudaLayers::logits(CudaChunk& chunk, std::span<const std::int32_t> rows, float* out) {
  Op op(queue_, "head", -1, &chunk.order);
  if (rows.empty()) {
    op.begin(StreamId::compute);
    return op.close();
  }
  const HeadInputs inputs = upload_head(op.begin(StreamId::copy), chunk, rows, {}, {});
  const Stream& stream = op.begin(StreamId::compute);
  const Stream& copying = op.begin_beside(StreamId::host);
  const auto vocab = static_cast<std::size_t>(shape_.vocab);
  for_logits(stream, chunk, inputs.rows, rows.size(), [&](std::size_t first, int count) {
    chunk.computed.record(stream);
    chunk.computed.hold(copying);
    to_host(copying, out + first * vocab, work_.logits,
            static_cast<std::size_t>(count) * vocab * sizeof(float));
    logits_free_.record(copying);
  });
  return op.close();
}

Event CudaLayers::logprobs(CudaChunk& chunk, std::span<const std::int32_t> rows,
                           std::span<const std::int32_t> targets, ScoredToken* out) {
  Op op(queue_, "head", -1, &chunk.order);
  if (rows.empty()) {
    op.begin(StreamId::compute);
    return op.close();
  }
  for (const std::int32_t target : targets) {
    require(target >= 0 && target < shape_.vocab,
            "cannot score token {} (the vocabulary has ids 0 to {})", target, shape_.vocab - 1);
  }
  const HeadInputs inputs = upload_head(op.begin(StreamId::copy), chunk, rows, {}, targets);
  const Stream& stream = op.begin(StreamId::compute);
  for_logits(stream, chunk, inputs.rows, rows.size(), [&](std::size_t first, int count) {
    log_probs(stream.raw(), work_.logits, inputs.targets + first, chunk.memory.logprobs + first,
              count, shape_.vocab);
  });
  chunk.computed.record(stream);
  const Stream& copying = op.begin_beside(StreamId::host);
  chunk.computed.hold(copying);
  to_host(copying, out, chunk.memory.logprobs, rows.size() * sizeof(ScoredToken));
  return op.close();
}

std::size_t CudaLayers::rows_with_room(std::span<const SamplingRequest> how, std::size_t first,
                                       std::size_t end) const {
  const auto room = static_cast<std::size_t>(shape_.vocab);
  std::size_t used = 0;
  std::size_t next = first;
  do {
    used += how[next++].changes.size();
  } while (next < end && used + how[next].changes.size() <= room);
  return next - first;
}

/// As for_logits() and sample_piece() will take the rows.
void CudaLayers::place_changes(std::span<const SamplingRequest> how, Draw* draws) const {
  const auto step = static_cast<std::size_t>(work_.vocab_rows);
  for (std::size_t first = 0; first < how.size();) {
    const std::size_t end = std::min(how.size(), (first / step + 1) * step);
    const std::size_t count = rows_with_room(how, first, end);
    std::int64_t used = 0;
    for (std::size_t i = first; i < first + count; ++i) {
      draws[i].first_change = used;
      used += std::ssize(how[i].changes);
    }
    first += count;
  }
}

void CudaLayers::sample_piece(const Stream& stream, CudaChunk& chunk, const Draw* draws,
                              std::span<const SamplingRequest> how, std::size_t first,
                              std::size_t count) {
  const auto vocab = static_cast<std::size_t>(shape_.vocab);
  for (std::size_t begin = first; begin < first + count;) {
    const std::size_t rows = rows_with_room(how, begin, first + count);
    const auto piece = how.subspan(begin, rows);
    if (std::ranges::any_of(piece, [](const auto& request) { return !request.changes.empty(); })) {
      auto* const host = reinterpret_cast<LogitChange*>(change_uploads_.next());
      LogitChange* end = host;
      for (const SamplingRequest& request : piece) {
        end = std::copy(request.changes.begin(), request.changes.end(), end);
      }
      change_uploads_.copy(stream, work_.changes,
                           static_cast<std::size_t>(end - host) * sizeof(LogitChange));
    }
    cuda::sample(stream.raw(), work_.logits + (begin - first) * vocab, draws + begin, work_.changes,
                 chunk.memory.sampled, static_cast<int>(rows), shape_.vocab);
    begin += rows;
  }
}

Event CudaLayers::sample(CudaChunk& chunk, std::span<const std::int32_t> rows,
                         std::span<const SamplingRequest> how, SampledToken* out) {
  Op op(queue_, "head", -1, &chunk.order);
  if (rows.empty()) {
    op.begin(StreamId::compute);
    return op.close();
  }
  const HeadInputs inputs = upload_head(op.begin(StreamId::copy), chunk, rows, how, {});
  const Stream& stream = op.begin(StreamId::compute);
  for_logits(stream, chunk, inputs.rows, rows.size(), [&](std::size_t first, int count) {
    sample_piece(stream, chunk, inputs.draws, how, first, static_cast<std::size_t>(count));
  });
  chunk.computed.record(stream);
  const Stream& copying = op.begin_beside(StreamId::host);
  chunk.computed.hold(copying);
  std::size_t outcomes = 0;
  for (const SamplingRequest& request : how) outcomes += request.outcomes();
  to_host(copying, chunk.sampled.data(), chunk.memory.sampled, outcomes * sizeof(SampledToken));
  op.run_on_host([from = chunk.sampled.as<SampledToken>(), out, count = outcomes] {
    std::copy_n(from, count, out);
  });
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

Event CudaLayers::save_x(const CudaChunk& chunk, float* x) {
  Op op(queue_, "save x", -1, &chunk.order);
  const Stream& stream = op.begin(StreamId::host);
  to_host(stream, x, chunk.memory.x,
          static_cast<std::size_t>(chunk.num_tokens()) * static_cast<std::size_t>(shape_.hidden) *
              sizeof(float));
  return op.close();
}

Event CudaLayers::save_choices(const CudaChunk& chunk, std::int32_t* experts, float* weights,
                               float* given_up) {
  Op op(queue_, "save choices", -1, &chunk.order);
  const Stream& stream = op.begin(StreamId::host);
  const auto pairs =
      static_cast<std::size_t>(chunk.num_tokens()) * static_cast<std::size_t>(shape_.top_k);
  to_host(stream, experts, chunk.memory.experts, pairs * sizeof(std::int32_t));
  to_host(stream, weights, chunk.memory.weights, pairs * sizeof(float));
  if (given_up != nullptr) {
    to_host(stream, given_up, chunk.given_up(),
            static_cast<std::size_t>(chunk.num_tokens()) * sizeof(float));
  }
  return op.close();
}

const std::int32_t* CudaLayers::upload_pages(const Stream& stream,
                                             std::span<const std::int32_t> pages) {
  const auto count = std::min(pages.size(), static_cast<std::size_t>(most_pages(options_)));
  std::copy_n(pages.begin(), count, reinterpret_cast<std::int32_t*>(page_uploads_.next()));
  page_uploads_.copy(stream, work_.pages, count * sizeof(std::int32_t));
  return work_.pages;
}

/// As many positions at once as a chunk has tokens.
Event CudaLayers::save_kv(int layer, std::span<const std::int32_t> pages, int first_position,
                          int num_positions, void* keys, void* values) {
  Op op(queue_, "save kv", layer, nullptr);
  const Stream& stream = op.begin(StreamId::compute);
  if (num_positions == 0) return op.close();
  const Stream& copying = op.begin_beside(StreamId::host);
  const std::int32_t* const device_pages = upload_pages(stream, pages);
  const KvRowBytes bytes = kv_row_bytes(layer);
  for (int done = 0; done < num_positions;) {
    const int count = std::min(options_.max_chunk_tokens, num_positions - done);
    const auto n = static_cast<std::size_t>(count);
    const auto before = static_cast<std::size_t>(done);
    auto* const row_values = static_cast<std::byte*>(work_.kv_rows) + n * bytes.keys;
    gather_kv(stream.raw(), dtype_, kv_.layers[static_cast<std::size_t>(layer)], device_pages,
              first_position + done, count, work_.kv_rows, row_values);
    kv_moved_.record(stream);
    kv_moved_.hold(copying);
    to_host(copying, static_cast<std::byte*>(keys) + before * bytes.keys, work_.kv_rows,
            n * bytes.keys);
    if (bytes.values > 0) {
      to_host(copying, static_cast<std::byte*>(values) + before * bytes.values, row_values,
              n * bytes.values);
    }
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
  const KvRowBytes bytes = kv_row_bytes(layer);
  const auto to_device = [&](void* to, const void* from, std::size_t first, std::size_t size) {
    if (size == 0) return;
    check(cudaMemcpyAsync(to, static_cast<const std::byte*>(from) + first, size,
                          cudaMemcpyHostToDevice, stream.raw()),
          "cudaMemcpyAsync");
  };
  for (int done = 0; done < num_positions;) {
    const int count = std::min(options_.max_chunk_tokens, num_positions - done);
    const auto n = static_cast<std::size_t>(count);
    const auto before = static_cast<std::size_t>(done);
    auto* const row_values = static_cast<std::byte*>(work_.kv_rows) + n * bytes.keys;
    to_device(work_.kv_rows, keys, before * bytes.keys, n * bytes.keys);
    to_device(row_values, values, before * bytes.values, n * bytes.values);
    scatter_kv(stream.raw(), dtype_, kv_.layers[static_cast<std::size_t>(layer)], device_pages,
               first_position + done, count, work_.kv_rows, row_values);
    done += count;
  }
  return op.close();
}

CudaLayers::KvRowBytes CudaLayers::kv_row_bytes(int layer) const {
  const KvPages& kv = kv_.layers[static_cast<std::size_t>(layer)];
  const auto bytes = [&](int width) {
    return static_cast<std::size_t>(kv.num_kv_heads) * static_cast<std::size_t>(width) *
           size_of(dtype_);
  };
  return {bytes(kv.head_dim), shape_.latent.used() ? 0 : bytes(kv.values_dim())};
}

}  // namespace atl::compute::cuda
