// The CPU backend's head: logits of chosen rows, and what is done with them.

#include <algorithm>

#include "compute/cpu/operations.hpp"

namespace atl::compute {

void CpuLayers::norm_rows(CpuChunk& chunk, std::span<const std::int32_t> rows, void* out) {
  const int width = shape_.hidden;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    kernels_.rms_norm(x_row(chunk, rows[i]), final_norm_.as<float>(), shape_.rms_eps,
                      row(out, static_cast<std::int64_t>(i), width), 1, width);
  }
}

void CpuLayers::logits(CpuChunk& chunk, std::span<const std::int32_t> rows, float* out) {
  for (std::size_t i = 0; i < rows.size(); i += tile_rows) {
    const auto tile = rows.subspan(i, std::min<std::size_t>(tile_rows, rows.size() - i));
    norm_rows(chunk, tile, work_.h.data());
    gemm_->run(lm_head_, work_.h.data(), static_cast<std::int64_t>(tile.size()),
               out + static_cast<std::int64_t>(i) * shape_.vocab, Finish::float32);
  }
}

/// Calls visit(i, logits [vocab] of rows[i]) for every row, on several threads; it may change them.
template <class Visit>
void CpuLayers::for_logits(CpuChunk& chunk, std::span<const std::int32_t> rows,
                           const Visit& visit) {
  const std::int64_t vocab = shape_.vocab;
  const auto step = static_cast<std::size_t>(work_.vocab_rows);
  for (std::size_t i = 0; i < rows.size(); i += step) {
    const auto tile = rows.subspan(i, std::min(step, rows.size() - i));
    norm_rows(chunk, tile, work_.h.data());
    gemm_->run(lm_head_, work_.h.data(), static_cast<std::int64_t>(tile.size()), work_.vocab.data(),
               Finish::float32);
    parallel_ranges(options_.num_threads, static_cast<std::int64_t>(tile.size()), grain_rows(vocab),
                    [&](std::int64_t begin, std::int64_t end, int) {
                      for (std::int64_t r = begin; r < end; ++r) {
                        visit(i + static_cast<std::size_t>(r), work_.vocab.as<float>() + r * vocab);
                      }
                    });
  }
}

namespace {

/// Whether the target is the first of the largest logits.
bool is_greedy(std::span<const float> logits, std::int32_t target) {
  const float own = logits[static_cast<std::size_t>(target)];
  const auto before = logits.first(static_cast<std::size_t>(target));
  return std::ranges::none_of(before, [own](float x) { return x >= own; }) &&
         std::ranges::none_of(logits.subspan(before.size()), [own](float x) { return x > own; });
}

}  // namespace

void CpuLayers::logprobs(CpuChunk& chunk, std::span<const std::int32_t> rows,
                         std::span<const std::int32_t> targets, ScoredToken* out) {
  const auto vocab = static_cast<std::size_t>(shape_.vocab);
  for_logits(chunk, rows, [&](std::size_t i, float* logits) {
    out[i] = {kernels_.log_prob(logits, shape_.vocab, targets[i]),
              is_greedy({logits, vocab}, targets[i]) ? 1 : 0};
  });
}

void CpuLayers::sample(CpuChunk& chunk, std::span<const std::int32_t> rows,
                       std::span<const SamplingRequest> how, SampledToken* out) {
  const auto vocab = static_cast<std::size_t>(shape_.vocab);
  outcome_of_.clear();
  std::size_t outcomes = 0;
  for (const SamplingRequest& request : how) {
    outcome_of_.push_back(outcomes);
    outcomes += request.outcomes();
  }
  for_logits(chunk, rows, [&](std::size_t i, float* logits) {
    sample_row({logits, vocab}, draw_of(how[i]), how[i].changes, out + outcome_of_[i]);
  });
}

}  // namespace atl::compute
