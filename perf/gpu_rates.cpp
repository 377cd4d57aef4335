#include "perf/gpu_rates.hpp"

#include <cublasLt.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "compute/cuda/error.hpp"
#include "compute/cuda/kernels.hpp"
#include "compute/cuda/plan/workspace.hpp"
#include "compute/error.hpp"
#include "compute/weights.hpp"
#include "perf/gpu_ceilings.hpp"

namespace atl::gpu_bench {

using compute::cuda::CudaGemm;
using compute::cuda::DeviceBuffer;

namespace {

std::int64_t largest_weight(const ModelShape& s) {
  return std::int64_t{s.hidden} *
         std::max({s.q_width() + 2 * s.kv_width(), s.q_width(), s.moe_intermediate});
}
std::int64_t widest(const ModelShape& s) {
  return std::max({s.q_width() + 2 * s.kv_width(), s.moe_intermediate, s.hidden});
}

}  // namespace

PresetGemms::PresetGemms(const ModelShape& s, DType dtype, int max_rows,
                         std::int64_t rotation_bytes)
    : dtype_(dtype),
      values_(random_values(std::max(largest_weight(s), std::int64_t{max_rows} * widest(s)) + 64,
                            1.0 / std::sqrt(static_cast<double>(s.hidden)), dtype)),
      weights_(static_cast<std::size_t>(rotation_bytes) + 2 * values_.size(), "copies of weights"),
      // One window further on, so that inputs are no rows of the weights.
      in_(on_device(values_.data() + 64 * size_of(dtype), values_.size() - 64 * size_of(dtype))),
      out_(static_cast<std::size_t>(max_rows * widest(s)) * size_of(dtype), "results"),
      workspace_(compute::cuda::gemm_workspace_bytes, "cuBLASLt's workspace"),
      gemm_(dtype, workspace_.data()),
      matrices_{{{s.q_width() + 2 * s.kv_width(), s.hidden},
                 {s.hidden, s.q_width()},
                 {s.moe_intermediate, s.hidden},
                 {s.hidden, s.moe_intermediate}}} {
  // The same values again and again: a copy of a smaller matrix begins anywhere in them.
  for (std::size_t at = 0; at < weights_.bytes(); at += values_.size()) {
    compute::cuda::check(
        cudaMemcpy(static_cast<std::byte*>(weights_.data()) + at, values_.data(),
                   std::min(values_.size(), weights_.bytes() - at), cudaMemcpyHostToDevice),
        "cudaMemcpy");
  }
  // Streams here do not wait for copies of pageable memory.
  compute::cuda::check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  for (Matrix& m : matrices_) {
    m.kind = gemm_.add(m.n, m.k, CudaGemm::Output::activation, max_rows, weights_.data());
    m.copies = 1 + static_cast<int>(static_cast<std::size_t>(rotation_bytes) / copy_bytes(m));
  }
  gemm_.prepare(stream_);
}

std::size_t PresetGemms::copy_bytes(const Matrix& m) const {
  const std::size_t bytes =
      static_cast<std::size_t>(m.n) * static_cast<std::size_t>(m.k) * size_of(dtype_);
  constexpr std::size_t alignment = compute::cuda::Arena::alignment;
  return (bytes + alignment - 1) / alignment * alignment;
}

void PresetGemms::check(std::size_t which, int rows) {
  const Matrix& m = matrices_[which];
  gemm_.run(stream_, m.kind, weights_.data(), in_.data(), rows, out_.data());
  compute::cuda::check(cudaStreamSynchronize(stream_.raw()), "cudaStreamSynchronize");
  const auto count = static_cast<std::size_t>(rows) * static_cast<std::size_t>(m.n);
  const auto out = to_host<std::byte>(out_.data(), count * size_of(dtype_));
  for (std::size_t sample = 0; sample < 64; ++sample) {
    const std::size_t at = sample * 2654435761U % count;
    const std::size_t row = at / static_cast<std::size_t>(m.n);
    const std::size_t column = at % static_cast<std::size_t>(m.n);
    const auto k = static_cast<std::size_t>(m.k);
    double sum = 0;
    double size = 0;
    for (std::size_t i = 0; i < k; ++i) {
      const double product = value_at(values_.data(), row * k + i + 64, dtype_) *
                             value_at(values_.data(), column * k + i, dtype_);
      sum += product;
      size += std::abs(product);
    }
    // Rounding of the result to 8 bits (11 for float16), of the sum to 24 bits per addition.
    const double got = value_at(out.data(), at, dtype_);
    require(std::abs(got - sum) <= std::abs(sum) / 256 + size * 1e-5,
            "GEMM {} with {} rows gives {} at [{}, {}] instead of {}", names[which], rows, got, row,
            column, sum);
  }
}

const void* PresetGemms::next_weight(Matrix& m) {
  m.next = (m.next + 1) % m.copies;
  return static_cast<const std::byte*>(weights_.data()) +
         static_cast<std::size_t>(m.next) * copy_bytes(m);
}

double PresetGemms::seconds(std::size_t which, int rows, int repetitions) {
  Matrix& m = matrices_[which];
  return time_on(stream_, repetitions, [&] {
    gemm_.run(stream_, m.kind, next_weight(m), in_.data(), rows, out_.data());
  });
}

double PresetGemms::fastest_seconds(std::size_t which, int rows, int repetitions) {
  Matrix& m = matrices_[which];
  return fastest_product(
      {dtype_, m.n, m.k, rows}, stream_, repetitions, [&] { return next_weight(m); }, in_.data(),
      out_.data(), workspace_.data());
}

std::string PresetGemms::algorithm(std::size_t which, int rows) const {
  const cublasLtMatmulAlgo_t& algo = gemm_.algorithm(matrices_[which].kind, rows);
  constexpr std::pair<const char*, cublasLtMatmulAlgoConfigAttributes_t> attributes[] = {
      {"id", CUBLASLT_ALGO_CONFIG_ID},
      {"tile", CUBLASLT_ALGO_CONFIG_TILE_ID},
      {"stages", CUBLASLT_ALGO_CONFIG_STAGES_ID},
      {"swizzle", CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING},
      {"custom", CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION}};
  std::string text;
  for (const auto& [name, attribute] : attributes) {
    std::int32_t value = 0;
    std::size_t written = 0;
    if (cublasLtMatmulAlgoConfigGetAttribute(&algo, attribute, &value, sizeof value, &written) ==
        CUBLAS_STATUS_SUCCESS) {
      text += fmt::format("{}{} {}", text.empty() ? "" : " ", name, value);
    }
  }
  return text.empty() ? "not told" : text;
}

std::string PresetGemms::row_dependent() const {
  return gemm_.row_dependent_kinds();
}

double PresetGemms::flops(std::size_t which, int rows) const {
  return 2.0 * rows * matrices_[which].n * matrices_[which].k;
}

double PresetGemms::bytes(std::size_t which, int rows) const {
  const Matrix& m = matrices_[which];
  const double elements = static_cast<double>(m.n) * m.k + static_cast<double>(rows) * (m.n + m.k);
  return elements * static_cast<double>(size_of(dtype_));
}

RowKernels::RowKernels(const ModelShape& shape, DType dtype, int tokens)
    : shape_(shape),
      dtype_(dtype),
      tokens_(tokens),
      rows_host_(random_values(std::int64_t{tokens} * shape.hidden, 1, dtype)) {
  const auto t = static_cast<std::size_t>(tokens);
  const auto e = static_cast<std::size_t>(shape.num_experts);
  const std::size_t chosen = t * static_cast<std::size_t>(shape.top_k);
  const std::size_t row_bytes = static_cast<std::size_t>(shape.hidden) * size_of(dtype);
  const auto logits = random_values(static_cast<std::int64_t>(t * e), 1, DType::float32);
  logits_host_.resize(t * e);
  std::memcpy(logits_host_.data(), logits.data(), logits.size());
  const compute::Part part = compute::whole_model(shape);
  const compute::ExpertPlaces& places = part.places.front();
  logits_ = on_device(logits.data(), logits.size());
  first_of_expert_ = on_device(places.first_of_expert.data(), (e + 1) * sizeof(std::int32_t));
  replicas_ = on_device(places.replicas.data(), e * sizeof(compute::ReplicaPlace));
  rows_ = on_device(rows_host_.data(), rows_host_.size());
  std::vector<float> x(rows_host_.size() / size_of(dtype));
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = start_of_x(i);
  x_ = on_device(x.data(), x.size() * sizeof(float));
  packed_ = DeviceBuffer(chosen * row_bytes, "packed rows");
  for (DeviceBuffer* buffer : {&experts_, &weights_, &chosen_, &slots_})
    *buffer = DeviceBuffer(chosen * 4, "routing");
  counts_ = DeviceBuffer(e * 4, "counts");
  scratch_ = DeviceBuffer(
      static_cast<std::size_t>(compute::cuda::group_scratch_ints(shape.num_experts)) * 4,
      "the router's scratch");
}

void RowKernels::launch() {
  compute::cuda::RouteArgs args;
  args.logits = static_cast<const float*>(logits_.data());
  args.replicas = {static_cast<const std::int32_t*>(first_of_expert_.data()),
                   static_cast<const compute::ReplicaPlace*>(replicas_.data())};
  args.num_tokens = tokens_;
  args.num_experts = shape_.num_experts;
  args.num_places = shape_.num_experts;
  args.top_k = shape_.top_k;
  args.renormalise = shape_.norm_topk_prob;
  args.experts = static_cast<std::int32_t*>(experts_.data());
  args.weights = static_cast<float*>(weights_.data());
  args.chosen = static_cast<std::int32_t*>(chosen_.data());
  args.slots = static_cast<std::int32_t*>(slots_.data());
  args.counts = static_cast<std::int32_t*>(counts_.data());
  args.scratch = static_cast<std::int32_t*>(scratch_.data());
  compute::cuda::route(stream_.raw(), args);
  compute::cuda::pack(stream_.raw(), dtype_, rows_.data(), args.slots, packed_.data(), tokens_,
                      shape_.top_k, shape_.hidden);
  compute::cuda::MergeArgs merge;
  merge.x = static_cast<float*>(x_.data());
  merge.rows = packed_.data();
  merge.slots = args.slots;
  merge.weights = args.weights;
  merge.num_tokens = tokens_;
  merge.top_k = shape_.top_k;
  merge.hidden = shape_.hidden;
  merge.eps = shape_.rms_eps;
  compute::cuda::merge(stream_.raw(), dtype_, merge);
}

void RowKernels::check() {
  launch();
  compute::cuda::check(cudaStreamSynchronize(stream_.raw()), "cudaStreamSynchronize");
  const auto k = static_cast<std::size_t>(shape_.top_k);
  const auto experts_of = static_cast<std::size_t>(shape_.num_experts);
  const auto hidden = static_cast<std::size_t>(shape_.hidden);
  const std::size_t row_bytes = hidden * size_of(dtype_);
  const std::size_t chosen = static_cast<std::size_t>(tokens_) * k;
  const auto experts = to_host<std::int32_t>(experts_.data(), chosen);
  const auto slots = to_host<std::int32_t>(slots_.data(), chosen);
  const auto packed = to_host<std::byte>(packed_.data(), chosen * row_bytes);
  const auto x = to_host<float>(x_.data(), rows_host_.size() / size_of(dtype_));
  std::vector<bool> taken(chosen, false);
  for (std::size_t i = 0; i < chosen; ++i) {
    const std::size_t token = i / k;
    const float* logits = logits_host_.data() + token * experts_of;
    const auto expert = static_cast<std::size_t>(experts[i]);
    const auto larger = static_cast<std::size_t>(std::count_if(
        logits, logits + experts_of, [&](float other) { return other > logits[expert]; }));
    require(larger == i % k, "choice {} of token {} is its {}th best expert", i % k, token,
            larger + 1);
    const auto slot = static_cast<std::size_t>(slots[i]);
    require(slot < chosen && !taken[slot], "slot {} of token {} is taken or none", slot, token);
    taken[slot] = true;
    require(std::memcmp(packed.data() + slot * row_bytes, rows_host_.data() + token * row_bytes,
                        row_bytes) == 0,
            "slot {} does not hold the row of token {}", slot, token);
  }
  // Weights sum to 1 and all rows of a token are the same: merged, it is added once to itself.
  for (std::size_t i = 0; i < x.size(); i += 97) {
    const double before = start_of_x(i);
    const double after = x[i];
    require(std::abs(after - 2 * before) <= std::abs(before) / 50, "x[{}] became {} from {}", i,
            after, before);
  }
}

float RowKernels::start_of_x(std::size_t i) const {
  return static_cast<float>(value_at(rows_host_.data(), i, dtype_));
}

double RowKernels::seconds(int repetitions) {
  return time_on(stream_, repetitions, [&] { launch(); });
}

double RowKernels::bytes() const {
  const double row_bytes =
      static_cast<double>(shape_.hidden) * static_cast<double>(size_of(dtype_)) * tokens_;
  const double routing = 4.0 * tokens_ * (shape_.num_experts + 6.0 * shape_.top_k);
  const double x_bytes = 4.0 * shape_.hidden * tokens_;
  // pack reads each row once and writes top_k; merge reads them and x, and writes x.
  return row_bytes * (1 + shape_.top_k) + row_bytes * shape_.top_k + 2 * x_bytes + routing;
}

SampleKernel::SampleKernel(int rows, int vocab, const SamplingOptions& options)
    : vocab_(vocab),
      logits_host_(static_cast<std::size_t>(rows) * static_cast<std::size_t>(vocab)) {
  const auto values = random_values(std::int64_t{rows} * vocab, 3, DType::float32);
  std::memcpy(logits_host_.data(), values.data(), values.size());
  for (int row = 0; row < rows; ++row) {
    draws_host_.push_back(compute::draw_of({options, row}));
    draws_host_.back().first_outcome = row;
  }
  logits_ = on_device(values.data(), values.size());
  draws_ = on_device(draws_host_.data(), draws_host_.size() * sizeof(compute::Draw));
  sampled_ = DeviceBuffer(draws_host_.size() * sizeof(SampledToken), "tokens");
}

void SampleKernel::launch() {
  compute::cuda::sample(stream_.raw(), static_cast<float*>(logits_.data()),
                        static_cast<const compute::Draw*>(draws_.data()), nullptr,
                        static_cast<SampledToken*>(sampled_.data()),
                        static_cast<int>(draws_host_.size()), vocab_);
}

void SampleKernel::check() {
  launch();
  compute::cuda::check(cudaStreamSynchronize(stream_.raw()), "cudaStreamSynchronize");
  const auto sampled = to_host<SampledToken>(sampled_.data(), draws_host_.size());
  const auto width = static_cast<std::size_t>(vocab_);
  for (std::size_t row = 0; row < sampled.size(); ++row) {
    const auto expected = compute::sample_row(
        std::span<const float>(logits_host_).subspan(row * width, width), draws_host_[row]);
    require(sampled[row].token == expected.token, "row {} gives token {} instead of {}", row,
            sampled[row].token, expected.token);
  }
}

double SampleKernel::seconds(int repetitions) {
  return time_on(stream_, repetitions, [this] { launch(); });
}

double SampleKernel::bytes() const {
  return static_cast<double>(logits_host_.size() * sizeof(float));
}

}  // namespace atl::gpu_bench
