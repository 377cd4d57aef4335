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

Finish finish_of(Activation activation) {
  switch (activation) {
    case Activation::swiglu:
      return Finish::swiglu;
    case Activation::swiglu_clamped:
      return Finish::swiglu_clamped;
    case Activation::gelu_tanh:
      break;
  }
  return Finish::gelu;
}

Finish finish_of(Weight weight, const BackendOptions& options) {
  switch (weight) {
    case Weight::router:
    case Weight::shared_router:
    case Weight::lm_head:
      return Finish::float32;
    case Weight::o:
      return finish_of_output(options.part.attention);
    case Weight::down:
    case Weight::shared_down:
      return Finish::add;
    case Weight::up:
    case Weight::gate:
    case Weight::shared_up:
    case Weight::shared_gate:
      return finish_of(options.shape.activation);
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
      gemm_(make_gemm(options.shape, options.dtype, options.num_threads)),
      kernels_(kernels_for(options.dtype, cpu_isa())),
      layers_(static_cast<std::size_t>(options.shape.num_layers)) {
  mlp_.shape = &shape_;
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    layouts_.push_back(kv_layout_of(options, static_cast<int>(i)));
    heads_of_layer_.push_back(own_heads(shape_, options.part.attention, static_cast<int>(i)));
    if (shape_.latent.used()) {
      layers_[i].latent_heads.resize(static_cast<std::size_t>(own_.num_heads));
    }
    layers_[i].o.resize(static_cast<std::size_t>(num_parts(Weight::o, options)));
    layers_[i].experts.resize(options.part.experts[i].size());
  }
}

AlignedBuffer& CpuLayers::vector_place(const WeightInfo& info, int local_expert) {
  if (info.id == Weight::final_norm) return final_norm_;
  CpuLayer& weights = layers_[static_cast<std::size_t>(info.layer)];
  CpuMlp& mlp =
      local_expert >= 0 ? weights.experts[static_cast<std::size_t>(local_expert)] : weights.dense;
  switch (info.id) {
    case Weight::attention_norm:
      return weights.attention_norm;
    case Weight::ffn_norm:
      return weights.ffn_norm;
    case Weight::q_norm:
      return weights.q_norm;
    case Weight::qkv_bias:
      return weights.qkv_bias;
    case Weight::output_bias:
      return weights.output_bias;
    case Weight::sinks:
      return weights.sinks;
    case Weight::router_bias:
      return weights.router_bias;
    case Weight::selection_bias:
      return weights.selection_bias;
    case Weight::gate_bias:
      return mlp.gate_bias;
    case Weight::up_bias:
      return mlp.up_bias;
    case Weight::down_bias:
      return mlp.down_bias;
    case Weight::q_latent_norm:
      return weights.q_latent_norm;
    case Weight::kv_latent_norm:
      return weights.kv_latent_norm;
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
    case Weight::shared_up:
      return one(weights.shared.up);
    case Weight::shared_gate:
      return one(weights.shared.gate);
    case Weight::shared_down:
      return one(weights.shared.down);
    case Weight::shared_router:
      return one(weights.shared_router);
    case Weight::q_up:
      return one(weights.q_up);
    default:
      return one(mlp.down);
  }
}

void CpuLayers::load_latent_heads(const WeightInfo& info, const void* data) {
  std::vector<CpuLatentHead>& heads = layers_[static_cast<std::size_t>(info.layer)].latent_heads;
  const auto cols = static_cast<int>(info.cols);
  const int rows = static_cast<int>(info.rows / std::ssize(heads));
  const auto element = static_cast<std::size_t>(element_bytes_);
  AlignedBuffer turned(static_cast<std::size_t>(rows) * static_cast<std::size_t>(cols) * element);
  const char* from = static_cast<const char*>(data);
  for (CpuLatentHead& head : heads) {
    PackedWeight& place = info.id == Weight::k_up ? head.k_up : head.v_up;
    place = gemm_->pack(from, rows, cols);
    for (int r = 0; info.id == Weight::k_up && r < rows; ++r) {
      for (int c = 0; c < cols; ++c, from += element) {
        std::memcpy(turned.as<char>() + static_cast<std::size_t>(c * rows + r) * element, from,
                    element);
      }
    }
    if (info.id == Weight::k_up) {
      head.k_down = gemm_->pack(turned.data(), cols, rows);
    } else {
      from += static_cast<std::size_t>(rows) * static_cast<std::size_t>(cols) * element;
    }
  }
}

void CpuLayers::load(const WeightInfo& info, int local_expert, const void* data) {
  if (info.id == Weight::embedding) {
    const auto bytes = static_cast<std::size_t>(info.num_elements() * element_bytes_);
    if (embedding_.bytes() != static_cast<std::int64_t>(bytes)) embedding_ = AlignedBuffer(bytes);
    std::memcpy(embedding_.data(), data, bytes);
  } else if (info.id == Weight::k_up || info.id == Weight::v_up) {
    load_latent_heads(info, data);
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

void CpuLayers::load_codes(const WeightInfo& info, int local_expert, const HostTensor& tensor) {
  const std::span<PackedWeight> parts = matrix_places(info, local_expert);
  HostTensor some = tensor;
  some.rows /= std::ssize(parts);
  for (PackedWeight& part : parts) {
    part = gemm_->pack_codes(some);
    some.data = static_cast<const char*>(some.data) + some.rows * some.coding.row_bytes(some.cols);
    some.scales = static_cast<const char*>(some.scales) +
                  some.rows * some.coding.groups(some.cols) * some.coding.scale_bytes();
  }
}

void CpuLayers::load_vector(const WeightInfo& info, int local_expert, const float* data) {
  const auto bytes = static_cast<std::size_t>(info.rows) * sizeof(float);
  AlignedBuffer floats(bytes);
  std::memcpy(floats.data(), data, bytes);
  vector_place(info, local_expert) = std::move(floats);
}

void CpuLayers::prepare_weight(const WeightInfo& info, int local_expert) {
  const auto take = [&](const PackedWeight& weight, Finish finish) {
    memory_.weights += weight.bytes();
    gemm_->prepare(weight, finish);
  };
  if (info.use == Use::vector) {
    memory_.weights += vector_place(info, local_expert).bytes();
  } else if (info.id == Weight::k_up || info.id == Weight::v_up) {
    for (CpuLatentHead& head : layers_[static_cast<std::size_t>(info.layer)].latent_heads) {
      if (info.id == Weight::k_up) {
        take(head.k_up, Finish::rounded);
        take(head.k_down, Finish::rounded);
      } else {
        take(head.v_up, Finish::rounded);
      }
    }
  } else if (info.id != Weight::embedding) {
    const std::span<PackedWeight> parts = matrix_places(info, local_expert);
    for (const PackedWeight& part : parts) {
      take(part, finish_of(info.id, options_));
      if (parts.size() > 1) gemm_->prepare(part, finish_of_a_part);
    }
    if (info.id == Weight::shared_down) gemm_->prepare(parts.front(), Finish::rounded);
  }
}

void CpuLayers::prepare() {
  memory_ = {};
  memory_.weights = embedding_.bytes();
  for_each_weight(shape_, options_.part, [&](const WeightInfo& info, int, int local_expert) {
    prepare_weight(info, local_expert);
  });
  HostArena arena(HostArena::Mode::take);
  work_ = CpuWorkspace(options_, arena);
  memory_.buffers = arena.bytes() + gemm_->buffer_bytes();
  kv_ = CpuKvCache(options_, arena);
  for (const AlignedBuffer& pages : kv_.layers) memory_.kv_cache += pages.bytes();
  const std::int64_t rows = options_.most_attention_rows();
  positions_.resize(static_cast<std::size_t>(rows));
  pages_.resize(static_cast<std::size_t>(rows));
  for (const AttendLimits& limits : work_.attend) attend_plan_.reserve(rows, limits);
  latent_rows_.reserve(static_cast<std::size_t>(rows));
  const auto parts = static_cast<std::size_t>(num_parts(Weight::o, options_));
  parts_.in.reserve(most_rows_at_once);
  parts_.out.reserve(most_rows_at_once * parts);
  parts_.products.reserve(most_rows_at_once / tile_rows * parts);
  reserve_latents();
}

namespace {
/// Calls visit(data, bytes) for all that an expert consists of, in an order of its own.
template <class Visit>
void for_parts(const CpuMlp& mlp, const Visit& visit) {
  for (const PackedWeight* weight : {&mlp.up, &mlp.gate, &mlp.down}) {
    if (!weight->empty()) visit(weight->data(), weight->bytes());
  }
  for (const AlignedBuffer* bias : {&mlp.up_bias, &mlp.gate_bias, &mlp.down_bias}) {
    if (bias->bytes() > 0) visit(bias->data(), bias->bytes());
  }
}
}  // namespace

std::int64_t CpuLayers::expert_bytes(int layer) const {
  if (layers_[static_cast<std::size_t>(layer)].experts.empty()) return 0;
  std::int64_t sum = 0;
  for_parts(expert_of(layer, 0), [&](void*, std::int64_t bytes) { sum += bytes; });
  return sum;
}

void CpuLayers::read_expert(int layer, int local_expert, std::span<std::byte> bytes) const {
  std::byte* to = bytes.data();
  for_parts(expert_of(layer, local_expert), [&](void* part, std::int64_t size) {
    std::memcpy(to, part, static_cast<std::size_t>(size));
    to += size;
  });
}

void CpuLayers::write_expert(int layer, int local_expert, std::span<const std::byte> bytes) {
  const std::byte* from = bytes.data();
  for_parts(expert_of(layer, local_expert), [&](void* part, std::int64_t size) {
    std::memcpy(part, from, static_cast<std::size_t>(size));
    from += size;
  });
}

std::string CpuLayers::description() const {
  return fmt::format("cpu: {}, {} kernels, {} thread{}", gemm_->description(), kernels_.isa,
                     options_.num_threads, options_.num_threads == 1 ? "" : "s");
}

}  // namespace atl::compute
