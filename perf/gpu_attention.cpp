#include "perf/gpu_attention.hpp"

#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <cmath>
#include <numeric>

#include "compute/cuda/plan/attention_plan.hpp"
#include "compute/cuda/wgmma.hpp"
#include "compute/error.hpp"
#include "perf/gpu_bench.hpp"
#include "perf/gpu_ceilings.hpp"
#include "perf/gpu_layer.hpp"

namespace atl::gpu_bench {

using compute::cuda::check;

namespace {

/// No multiple of a head or a page, so that heads and pages differ.
constexpr std::size_t period = 16'000'057;

std::size_t row_elements(const ModelShape& s) {
  return static_cast<std::size_t>(s.q_width());
}

std::size_t cache_elements(const ModelShape& s, int sequences, int pages_each) {
  return static_cast<std::size_t>(sequences) * static_cast<std::size_t>(pages_each) * page_tokens *
         static_cast<std::size_t>(s.kv_width());
}

template <class T>
compute::cuda::DeviceBuffer list_on_device(const std::vector<T>& list) {
  // A list may be empty; memory of no bytes is none.
  if (list.empty()) return compute::cuda::DeviceBuffer(sizeof(T), "an empty list");
  return on_device(list.data(), list.size() * sizeof(T));
}

}  // namespace

RepeatedValues::RepeatedValues(std::size_t count, std::size_t shift, DType dtype)
    : dtype_(dtype), period_(std::min(count, period) * size_of(dtype)) {
  fill_normal(static_cast<std::int64_t>(shift), 1, dtype, period_);
  device_ = repeated_on_device(period_, count * size_of(dtype));
}

double RepeatedValues::at(std::size_t i) const {
  return value_at(period_.data(), i % (period_.size() / size_of(dtype_)), dtype_);
}

AttentionKernel::AttentionKernel(const ModelShape& shape, DType dtype, int sequences, int context,
                                 int rows)
    : shape_(shape),
      dtype_(dtype),
      sequences_(sequences),
      context_(context),
      rows_(rows),
      pages_each_((context + page_tokens - 1) / page_tokens),
      keys_(cache_elements(shape, sequences, pages_each_), 0, dtype),
      values_(cache_elements(shape, sequences, pages_each_), 1'000'000'007, dtype),
      queries_(static_cast<std::size_t>(sequences) * static_cast<std::size_t>(rows) *
                   row_elements(shape),
               2'000'000'011, dtype),
      out_(static_cast<std::size_t>(sequences) * static_cast<std::size_t>(rows) *
               row_elements(shape) * size_of(dtype),
           "attention's results") {
  plan();
}

void AttentionKernel::plan() {
  std::vector<std::int32_t> positions, sequence_of_row;
  std::vector<std::int32_t> pages(static_cast<std::size_t>(sequences_ * pages_each_));
  std::iota(pages.begin(), pages.end(), 0);
  std::vector<compute::Segment> segments;
  for (int s = 0; s < sequences_; ++s) {
    segments.push_back({s * rows_, rows_, context_ - rows_, pages.data() + s * pages_each_});
    for (int row = 0; row < rows_; ++row) {
      positions.push_back(context_ - rows_ + row);
      sequence_of_row.push_back(s);
    }
  }
  namespace cuda = compute::cuda;
  const int num_rows = sequences_ * rows_;
  cuda::AttentionPlan plan;
  plan.by_groups = cuda::why_no_chosen_wgmma().empty() && cuda::wgmma_attends(shape_, dtype_);
  cuda::plan_attention(shape_, segments, multiprocessors(),
                       cuda::attention_workspace_rows(shape_, num_rows), plan);
  positions_ = list_on_device(positions);
  sequence_of_row_ = list_on_device(sequence_of_row);
  pages_ = list_on_device(pages);
  tiles_ = list_on_device(plan.tiles);
  merges_ = list_on_device(plan.merges);
  workspace_ = cuda::DeviceBuffer(
      static_cast<std::size_t>(cuda::attention_workspace_floats(shape_, num_rows)) * sizeof(float),
      "attention's workspace");
  args_.kv = {keys_.data(), values_.data(), shape_.num_kv_heads, shape_.head_dim, page_tokens};
  args_.map = {static_cast<const std::int32_t*>(positions_.data()),
               static_cast<const std::int32_t*>(sequence_of_row_.data()),
               static_cast<const std::int32_t*>(pages_.data()), pages_each_};
  args_.num_heads = shape_.num_heads;
  const int group = shape_.num_heads / shape_.num_kv_heads;
  args_.groups = {group, 0, group};
  args_.num_rows = num_rows;
  args_.qkv = queries_.data();
  args_.qkv_stride = shape_.q_width();
  args_.out = out_.data();
  args_.tiles = static_cast<const cuda::AttentionTile*>(tiles_.data());
  args_.num_wide = plan.num_wide;
  args_.num_narrow = plan.num_narrow;
  args_.merges = static_cast<const cuda::AttentionMerge*>(merges_.data());
  args_.num_merges = static_cast<int>(plan.merges.size());
  args_.workspace = static_cast<float*>(workspace_.data());
  totals_ = cuda::DeviceBuffer(
      static_cast<std::size_t>(cuda::attention_totals_floats(shape_)) * sizeof(float),
      "attention's totals");
  args_.wgmma = plan.by_groups;
  args_.totals = static_cast<float*>(totals_.data());
}

void AttentionKernel::launch() {
  compute::cuda::attention(stream_.raw(), dtype_, args_);
}

void AttentionKernel::check() {
  // What is not written must not look right: 0xff is NaN.
  compute::cuda::check(cudaMemsetAsync(out_.data(), 0xff, out_.bytes(), stream_.raw()),
                       "cudaMemsetAsync");
  launch();
  compute::cuda::check(cudaStreamSynchronize(stream_.raw()), "cudaStreamSynchronize");
  for (const auto& [sequence, row] :
       {std::pair{0, 0}, {sequences_ / 2, rows_ / 3}, {sequences_ - 1, rows_ - 1}}) {
    for (const int head : {0, shape_.num_heads / 2, shape_.num_heads - 1}) {
      check_row(sequence, row, head);
    }
  }
}

void AttentionKernel::check_row(int sequence, int row, int head) {
  const auto d = static_cast<std::size_t>(shape_.head_dim);
  const int kv_head = head / (shape_.num_heads / shape_.num_kv_heads);
  const auto num_keys = static_cast<std::size_t>(context_ - rows_ + row + 1);
  const std::size_t query =
      static_cast<std::size_t>(sequence * rows_ + row) * row_elements(shape_) +
      static_cast<std::size_t>(head) * d;
  const auto element_of = [&](std::size_t position) {
    const std::size_t page =
        static_cast<std::size_t>(sequence * pages_each_) + position / page_tokens;
    const std::size_t head_of_page =
        page * static_cast<std::size_t>(shape_.num_kv_heads) + static_cast<std::size_t>(kv_head);
    return (head_of_page * page_tokens + position % page_tokens) * d;
  };
  std::vector<double> expected(d);
  double sum = 0;
  for (std::size_t position = 0; position < num_keys; ++position) {
    const std::size_t at = element_of(position);
    double score = 0;
    for (std::size_t i = 0; i < d; ++i) score += queries_.at(query + i) * keys_.at(at + i);
    // Random scores are of size 1: no maximum needs to be taken off.
    const double weight = std::exp(score / std::sqrt(static_cast<double>(d)));
    sum += weight;
    for (std::size_t i = 0; i < d; ++i) expected[i] += weight * values_.at(at + i);
  }
  const auto got = to_host<std::byte>(
      static_cast<const std::byte*>(out_.data()) + query * size_of(dtype_), d * size_of(dtype_));
  // Weights are rounded to 16 bits each, whose errors average out as the values do.
  const double noise = 0.02 / std::sqrt(static_cast<double>(num_keys));
  for (std::size_t i = 0; i < d; ++i) {
    const double wanted = expected[i] / sum;
    const double value = value_at(got.data(), i, dtype_);
    require(std::abs(value - wanted) <= noise + std::abs(wanted) / 100,
            "attention gives {} instead of {} (sequence {}, {} keys, head {}, column {})", value,
            wanted, sequence, num_keys, head, i);
  }
}

double AttentionKernel::seconds(int repetitions) {
  return time_on(stream_, repetitions, [this] { launch(); });
}

double AttentionKernel::flops() const {
  double keys = 0;
  for (int row = 0; row < rows_; ++row) keys += context_ - rows_ + row + 1;
  return 4.0 * sequences_ * keys * shape_.q_width();
}

double AttentionKernel::bytes() const {
  const double of_cache = 2.0 * sequences_ * static_cast<double>(context_) * shape_.kv_width();
  const double of_rows = 2.0 * sequences_ * static_cast<double>(rows_) * shape_.q_width();
  return (of_cache + of_rows) * static_cast<double>(size_of(dtype_));
}

namespace {

void attention(benchmark::State& state, const Bench& bench, const std::string& name,
               const std::string& preset, int context, bool is_prefill) {
  const ModelConfig config = one_layer(preset + bench.sizes.suffix);
  AttentionKernel kernel(config.shape, config.dtype, is_prefill ? 1 : bench.sizes.sequences,
                         context, is_prefill ? context : 1);
  kernel.check();
  double seconds = 0;
  for (auto _ : state) {
    seconds = kernel.seconds(bench.sizes.repetitions);
    state.SetIterationTime(seconds);
  }
  state.counters["TFLOP_per_s"] = kernel.flops() / seconds / 1e12;
  state.counters["of_best_gemm"] = kernel.flops() / seconds / bench.gemm_rate;
  state.counters["of_copy"] = kernel.bytes() / seconds / bench.copy_rate;
  tell(state, name, seconds, bench.floor(kernel.flops(), kernel.bytes()),
       fmt::format("{} heads of {}, {}", config.shape.num_heads, config.shape.head_dim,
                   name_of(config.dtype)));
}

}  // namespace

void add_attention(Bench& bench) {
  for (const std::string preset : {"moe-16l", "moe-61l", "moe-4l"}) {
    for (const bool is_prefill : {true, false}) {
      for (const int context : bench.sizes.contexts) {
        add(bench,
            fmt::format("attention/{}/{}/{}", preset, is_prefill ? "prefill" : "decode", context),
            [&bench, preset, context, is_prefill](benchmark::State& state,
                                                  const std::string& name) {
              attention(state, bench, name, preset, context, is_prefill);
            });
      }
    }
  }
}

}  // namespace atl::gpu_bench
