// CpuLayers before the first pass: weights, tables, workspaces.

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "compute/cpu/operations.hpp"

namespace atl::compute {

namespace {
Finish finish_of_output(const AttentionShare& share) {
  if (!share.shared() || share.output == OutputCut::rows || share.output == OutputCut::either) {
    return Finish::add;
  }
  return share.output == OutputCut::sum ? Finish::float32 : Finish::rounded;
}
}  // namespace

Finish finish_of(Weight weight, const BackendOptions& options) {
  switch (weight) {
    case Weight::router:
    case Weight::lm_head:
      return Finish::float32;
    case Weight::o:
      return finish_of_output(options.part.attention);
    case Weight::down:
      return Finish::add;
    case Weight::up:
    case Weight::gate:
      return options.shape.activation == Activation::swiglu ? Finish::swiglu : Finish::gelu;
    default:
      return Finish::rounded;
  }
}

int num_parts(Weight weight, const BackendOptions& options) {
  const AttentionShare& share = options.part.attention;
  return weight == Weight::o && share.output == OutputCut::either ? share.members : 1;
}

CpuLayers::CpuLayers(const BackendOptions& options)
    : options_(options),
      shape_(options_.shape),
      element_bytes_(static_cast<std::int64_t>(size_of(options.dtype))),
      own_(own_heads(options.shape, options.part.attention)),
      sums_per_member_(options.part.attention.sums_per_member(shape_)),
      layout_(kv_layout_of(options)),
      gemm_(make_gemm(options.dtype, options.num_threads)),
      kernels_(kernels_for(options.dtype, cpu_isa())),
      layers_(static_cast<std::size_t>(options.shape.num_layers)) {
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    layers_[i].o.resize(static_cast<std::size_t>(num_parts(Weight::o, options)));
    layers_[i].experts.resize(options.part.experts[i].size());
  }
}

AlignedBuffer CpuLayers::floats_of(const void* data, std::int64_t count) const {
  AlignedBuffer floats(static_cast<std::size_t>(count) * sizeof(float));
  kernels_.to_float(data, floats.as<float>(), count);
  return floats;
}

AlignedBuffer& CpuLayers::vector_place(const WeightInfo& info) {
  if (info.id == Weight::final_norm) return final_norm_;
  CpuLayer& weights = layers_[static_cast<std::size_t>(info.layer)];
  switch (info.id) {
    case Weight::attention_norm:
      return weights.attention_norm;
    case Weight::ffn_norm:
      return weights.ffn_norm;
    case Weight::q_norm:
      return weights.q_norm;
    default:
      return weights.k_norm;
  }
}

std::span<PackedWeight> CpuLayers::matrix_places(const WeightInfo& info, int local_expert) {
  const auto one = [](PackedWeight& weight) { return std::span(&weight, 1); };
  if (info.id == Weight::lm_head) return one(lm_head_);
  CpuLayer& weights = layers_[static_cast<std::size_t>(info.layer)];
  CpuMlp& mlp =
      local_expert >= 0 ? weights.experts[static_cast<std::size_t>(local_expert)] : weights.dense;
  switch (info.id) {
    case Weight::qkv:
      return one(weights.qkv);
    case Weight::o:
      return weights.o;
    case Weight::router:
      return one(weights.router);
    case Weight::up:
      return one(mlp.up);
    case Weight::gate:
      return one(mlp.gate);
    default:
      return one(mlp.down);
  }
}

void CpuLayers::load(const WeightInfo& info, int local_expert, const void* data) {
  if (info.id == Weight::embedding) {
    const auto bytes = static_cast<std::size_t>(info.num_elements() * element_bytes_);
    if (embedding_.bytes() != static_cast<std::int64_t>(bytes)) embedding_ = AlignedBuffer(bytes);
    std::memcpy(embedding_.data(), data, bytes);
  } else if (info.use == Use::vector) {
    vector_place(info) = floats_of(data, info.rows);
  } else {
    const std::span<PackedWeight> parts = matrix_places(info, local_expert);
    const std::int64_t rows = info.rows / std::ssize(parts);
    const auto* from = static_cast<const char*>(data);
    for (PackedWeight& part : parts) {
      part = gemm_->pack(from, static_cast<int>(rows), static_cast<int>(info.cols));
      from += rows * info.cols * element_bytes_;
    }
  }
}

void CpuLayers::prepare() {
  memory_ = {};
  memory_.weights = embedding_.bytes();
  for_each_weight(shape_, options_.part, [&](const WeightInfo& info, int, int local_expert) {
    if (info.use == Use::vector) {
      memory_.weights += vector_place(info).bytes();
    } else if (info.id != Weight::embedding) {
      const std::span<PackedWeight> parts = matrix_places(info, local_expert);
      for (const PackedWeight& part : parts) {
        memory_.weights += part.bytes();
        gemm_->prepare(part, finish_of(info.id, options_));
        if (parts.size() > 1) gemm_->prepare(part, finish_of_a_part);
      }
    }
  });
  HostArena arena(HostArena::Mode::take);
  work_ = CpuWorkspace(options_, arena);
  memory_.buffers = arena.bytes() + gemm_->buffer_bytes();
  kv_ = CpuKvCache(options_, arena);
  for (const AlignedBuffer& pages : kv_.layers) memory_.kv_cache += pages.bytes();
  const std::int64_t rows = options_.most_attention_rows();
  positions_.resize(static_cast<std::size_t>(rows));
  pages_.resize(static_cast<std::size_t>(rows));
  attend_plan_.reserve(rows, work_.attend);
  const auto parts = static_cast<std::size_t>(num_parts(Weight::o, options_));
  parts_.in.reserve(most_rows_at_once);
  parts_.out.reserve(most_rows_at_once * parts);
  parts_.products.reserve(most_rows_at_once / tile_rows * parts);
}

std::int64_t CpuLayers::expert_bytes(int layer) const {
  if (layers_[static_cast<std::size_t>(layer)].experts.empty()) return 0;
  const CpuMlp& mlp = expert_of(layer, 0);
  return mlp.up.bytes() + mlp.gate.bytes() + mlp.down.bytes();
}

void CpuLayers::read_expert(int layer, int local_expert, std::span<std::byte> bytes) const {
  std::byte* to = bytes.data();
  const CpuMlp& mlp = expert_of(layer, local_expert);
  for (const PackedWeight* weight : {&mlp.up, &mlp.gate, &mlp.down}) {
    if (weight->empty()) continue;
    std::memcpy(to, weight->data(), static_cast<std::size_t>(weight->bytes()));
    to += weight->bytes();
  }
}

void CpuLayers::write_expert(int layer, int local_expert, std::span<const std::byte> bytes) {
  const std::byte* from = bytes.data();
  const CpuMlp& mlp = expert_of(layer, local_expert);
  for (const PackedWeight* weight : {&mlp.up, &mlp.gate, &mlp.down}) {
    if (weight->empty()) continue;
    std::memcpy(weight->data(), from, static_cast<std::size_t>(weight->bytes()));
    from += weight->bytes();
  }
}

std::string CpuLayers::description() const {
  return fmt::format("cpu: {}, {} kernels, {} thread{}", gemm_->description(), kernels_.isa,
                     options_.num_threads, options_.num_threads == 1 ? "" : "s");
}

}  // namespace atl::compute
