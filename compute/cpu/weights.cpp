// CpuLayers before the first pass: weights, tables, workspaces.

#include <algorithm>
#include <cmath>
#include <numbers>

#include "compute/cpu/operations.hpp"
#include "compute/error.hpp"

namespace atl::compute {

namespace {

KvLayout layout_of(const BackendOptions& options) {
  const ModelShape& shape = options.shape;
  return {shape.num_heads, shape.num_kv_heads, shape.head_dim, (shape.head_dim + 15) / 16 * 16,
          options.page_tokens};
}

/// log-prob tiles hold whole rows of logits; at most about 32 MiB of them.
int vocab_rows_for(int vocab) {
  const std::int64_t rows = (std::int64_t{8} << 20) / std::max(vocab, 1);
  return static_cast<int>(std::clamp<std::int64_t>(rows, 1, tile_rows));
}

std::int64_t bytes_of(const CpuMlp& mlp) {
  return mlp.up.bytes() + mlp.gate.bytes() + mlp.down.bytes();
}

}  // namespace

CpuLayers::CpuLayers(const BackendOptions& options)
    : options_(options),
      shape_(options_.shape),
      element_bytes_(static_cast<std::int64_t>(size_of(options.dtype))),
      layout_(layout_of(options)),
      gemm_(make_gemm(options.dtype, options.num_threads)),
      kernels_(kernels_for(options.dtype, cpu_isa())),
      layers_(static_cast<std::size_t>(options.shape.num_layers)) {
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    layers_[i].experts.resize(options.part.experts[i].size());
  }
}

PackedWeight CpuLayers::packed(const WeightInfo& info, const void* data) {
  return gemm_->pack(data, static_cast<int>(info.rows), static_cast<int>(info.cols));
}

AlignedBuffer CpuLayers::floats_of(const void* data, std::int64_t count) const {
  AlignedBuffer floats(static_cast<std::size_t>(count) * sizeof(float));
  kernels_.to_float(data, floats.as<float>(), count);
  return floats;
}

void CpuLayers::load(const WeightInfo& info, int local_expert, const void* data) {
  const auto bytes = static_cast<std::size_t>(info.num_elements() * element_bytes_);
  switch (info.id) {
    case Weight::embedding:
      embedding_ = AlignedBuffer(bytes);
      std::memcpy(embedding_.data(), data, bytes);
      return;
    case Weight::final_norm:
      final_norm_ = floats_of(data, info.rows);
      return;
    case Weight::lm_head:
      lm_head_ = packed(info, data);
      return;
    default:
      load_layer(layers_[static_cast<std::size_t>(info.layer)], info, local_expert, data);
  }
}

void CpuLayers::load_layer(CpuLayer& layer, const WeightInfo& info, int local_expert,
                           const void* data) {
  CpuMlp& mlp =
      local_expert < 0 ? layer.dense : layer.experts[static_cast<std::size_t>(local_expert)];
  switch (info.id) {
    case Weight::attention_norm:
      layer.attention_norm = floats_of(data, info.rows);
      return;
    case Weight::ffn_norm:
      layer.ffn_norm = floats_of(data, info.rows);
      return;
    case Weight::q_norm:
      layer.q_norm = floats_of(data, info.rows);
      return;
    case Weight::k_norm:
      layer.k_norm = floats_of(data, info.rows);
      return;
    case Weight::qkv:
      layer.qkv = packed(info, data);
      return;
    case Weight::o:
      layer.o = packed(info, data);
      return;
    case Weight::router:
      layer.router = packed(info, data);
      return;
    case Weight::up:
      mlp.up = packed(info, data);
      return;
    case Weight::gate:
      mlp.gate = packed(info, data);
      return;
    case Weight::down:
      mlp.down = packed(info, data);
      return;
    case Weight::embedding:
    case Weight::final_norm:
    case Weight::lm_head:
      break;
  }
}

void CpuLayers::make_rope_tables() {
  const int half = shape_.head_dim / 2;
  const auto fill = [&](AlignedBuffer& table, int count, int step) {
    table = AlignedBuffer(static_cast<std::size_t>(count) * 2 * half * sizeof(double));
    auto* values = table.as<double>();
    for (int index = 0; index < count; ++index) {
      for (int i = 0; i < half; ++i) {
        const double frequency = std::pow(shape_.rope_theta, -2.0 * i / shape_.head_dim);
        const double angle = static_cast<double>(index) * step * frequency;
        values[std::int64_t{index} * 2 * half + i] = std::cos(angle);
        values[std::int64_t{index} * 2 * half + half + i] = std::sin(angle);
      }
    }
  };
  fill(rope_coarse_, shape_.max_positions / 64 + 1, 64);
  fill(rope_fine_, 64, 1);
}

void CpuLayers::prepare_mlp(const CpuMlp& mlp) {
  if (mlp.up.empty()) return;
  gemm_->prepare(mlp.up, mlp.gate.empty() ? Finish::gelu : Finish::swiglu);
  gemm_->prepare(mlp.down, Finish::add);
}

void CpuLayers::prepare() {
  for (const CpuLayer& layer : layers_) {
    gemm_->prepare(layer.qkv, Finish::rounded);
    gemm_->prepare(layer.o, Finish::add);
    if (!layer.router.empty()) gemm_->prepare(layer.router, Finish::float32);
    prepare_mlp(layer.dense);
    for (const CpuMlp& expert : layer.experts) prepare_mlp(expert);
  }
  gemm_->prepare(lm_head_, Finish::float32);
  make_rope_tables();

  const std::int64_t tokens = whole_tiles(options_.max_chunk_tokens);
  const auto rows = [this](std::int64_t count, std::int64_t width, std::int64_t bytes) {
    return AlignedBuffer(static_cast<std::size_t>(count * width * bytes));
  };
  const std::int64_t inner = std::max(shape_.intermediate, shape_.moe_intermediate);
  h_ = rows(tokens, shape_.hidden, element_bytes_);
  mlp_rows_ = gemm_->rows_at_once();
  inner_ = rows(mlp_rows_, inner, element_bytes_);
  vocab_rows_ = vocab_rows_for(shape_.vocab);
  vocab_ = rows(vocab_rows_, shape_.vocab, sizeof(float));

  const int group = shape_.num_heads / shape_.num_kv_heads;
  attend_rows_ = std::max(1, 96 / group);
  scratch_floats_ = (attend_scratch_floats(layout_, attend_rows_ * group) + 15) / 16 * 16;
  attend_scratch_ = rows(options_.num_threads, scratch_floats_, sizeof(float));
  positions_.resize(static_cast<std::size_t>(tokens));
  pages_.resize(static_cast<std::size_t>(tokens));
  tasks_.reserve(static_cast<std::size_t>(tokens));
  kv_.clear();
  for (int i = 0; i < shape_.num_layers; ++i) {
    kv_.push_back(rows(options_.num_pages, layout_.page_elements(), element_bytes_));
  }
}

std::string CpuLayers::description() const {
  return fmt::format("cpu: {}, {} kernels, {} thread{}", gemm_->description(), kernels_.isa,
                     options_.num_threads, options_.num_threads == 1 ? "" : "s");
}

Backend::Memory CpuLayers::memory() const {
  Backend::Memory memory;
  memory.weights = embedding_.bytes() + final_norm_.bytes() + lm_head_.bytes();
  for (const CpuLayer& layer : layers_) {
    memory.weights += layer.attention_norm.bytes() + layer.ffn_norm.bytes() + layer.q_norm.bytes() +
                      layer.k_norm.bytes() + layer.qkv.bytes() + layer.o.bytes() +
                      layer.router.bytes() + bytes_of(layer.dense);
    for (const CpuMlp& expert : layer.experts) memory.weights += bytes_of(expert);
  }
  for (const AlignedBuffer& pages : kv_) memory.kv_cache += pages.bytes();
  memory.buffers = h_.bytes() + inner_.bytes() + vocab_.bytes() + attend_scratch_.bytes() +
                   rope_coarse_.bytes() + rope_fine_.bytes() + gemm_->buffer_bytes();
  return memory;
}

}  // namespace atl::compute
