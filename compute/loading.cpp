#include "compute/loading.hpp"

#include <array>

#include "compute/cpu/kernels.hpp"
#include "compute/error.hpp"

namespace atl::compute {

namespace {

constexpr std::array<const char*, 13> weight_names = {
    "embedding", "attention_norm", "qkv",  "q_norm",     "k_norm", "o", "ffn_norm", "router",
    "up",        "gate",           "down", "final_norm", "lm_head"};

bool belongs_to_layer(Weight weight) {
  return weight != Weight::embedding && weight != Weight::final_norm && weight != Weight::lm_head;
}

bool is_mlp(Weight weight) {
  return weight == Weight::up || weight == Weight::gate || weight == Weight::down;
}

}  // namespace

const char* name_of(Weight weight) {
  return weight_names[static_cast<std::size_t>(weight)];
}

Extent extent_of(Weight weight, const ModelShape& shape, bool expert) {
  const std::int64_t hidden = shape.hidden;
  const std::int64_t inner = expert ? shape.moe_intermediate : shape.intermediate;
  const bool whole = shape.qk_norm == QkNorm::whole_row;
  switch (weight) {
    case Weight::embedding:
    case Weight::lm_head:
      return {shape.vocab, hidden};
    case Weight::attention_norm:
    case Weight::ffn_norm:
    case Weight::final_norm:
      return {1, hidden};
    case Weight::qkv:
      return {shape.q_width() + 2 * shape.kv_width(), hidden};
    case Weight::q_norm:
      return {1, whole ? shape.q_width() : shape.head_dim};
    case Weight::k_norm:
      return {1, whole ? shape.kv_width() : shape.head_dim};
    case Weight::o:
      return {hidden, shape.q_width()};
    case Weight::router:
      return {shape.num_experts, hidden};
    case Weight::up:
    case Weight::gate:
      return {inner, hidden};
    case Weight::down:
      break;
  }
  return {hidden, inner};
}

void check_options(const BackendOptions& options, int largest_head_dim) {
  const ModelShape& shape = options.shape;
  require(shape.head_dim > 0 && shape.head_dim % 2 == 0 && shape.head_dim <= largest_head_dim,
          "cannot compute attention with head_dim {} (the kernels take even numbers up to {})",
          shape.head_dim, largest_head_dim);
  require(
      shape.num_kv_heads > 0 && shape.num_heads > 0 && shape.num_heads % shape.num_kv_heads == 0,
      "cannot share {} key/value heads among {} query heads (not a divisor)", shape.num_kv_heads,
      shape.num_heads);
  require(options.page_tokens > 0, "cannot use KV pages of {} tokens", options.page_tokens);
  require(shape.hidden > 0 && shape.vocab > 0 && shape.num_layers > 0 && shape.max_positions > 0,
          "cannot set up a model with hidden {}, vocabulary {}, {} layers and {} positions",
          shape.hidden, shape.vocab, shape.num_layers, shape.max_positions);
  require(shape.vocab <= max_vocab, "cannot sample from a vocabulary of {} tokens (at most {})",
          shape.vocab, max_vocab);
  require(shape.layer_is_dense.size() == static_cast<std::size_t>(shape.num_layers),
          "layer_is_dense has {} entries for {} layers", shape.layer_is_dense.size(),
          shape.num_layers);
  require(options.num_threads >= 1 && options.max_chunk_tokens >= 1 && options.num_pages >= 0 &&
              options.num_local_experts >= 0,
          "cannot run with {} threads, chunks of {} tokens and {} pages", options.num_threads,
          options.max_chunk_tokens, options.num_pages);
  require(shape.num_experts == 0 || (shape.top_k >= 1 && shape.top_k <= shape.num_experts),
          "cannot choose {} of {} experts", shape.top_k, shape.num_experts);
  require(options.send_order.size() == static_cast<std::size_t>(shape.num_experts),
          "send_order has {} entries for {} experts", options.send_order.size(), shape.num_experts);
}

Extent check_weight(const BackendOptions& options, Weight weight, int layer, int local_expert,
                    const HostTensor& tensor) {
  const char* name = name_of(weight);
  const ModelShape& shape = options.shape;
  require(belongs_to_layer(weight) ? layer >= 0 && layer < shape.num_layers : layer == -1,
          "weight {} cannot belong to layer {} of {}", name, layer, shape.num_layers);
  require(local_expert == -1 ||
              (is_mlp(weight) && local_expert >= 0 && local_expert < options.num_local_experts),
          "weight {} cannot belong to local expert {} of {}", name, local_expert,
          options.num_local_experts);
  const Extent extent = extent_of(weight, shape, local_expert >= 0);
  // A vector may come as one row or as one column.
  const bool fits = (tensor.rows == extent.rows && tensor.cols == extent.cols) ||
                    (extent.rows == 1 && tensor.rows == extent.cols && tensor.cols == 1);
  require(fits && tensor.data != nullptr,
          "weight {} of layer {} has shape [{}, {}], the configuration says [{}, {}]", name, layer,
          tensor.rows, tensor.cols, extent.rows, extent.cols);
  return extent;
}

const void* converted(const HostTensor& tensor, DType to, AlignedBuffer& buffer) {
  if (tensor.dtype == to) return tensor.data;
  const CpuIsa isa = cpu_isa();
  const std::int64_t count = tensor.rows * tensor.cols;
  AlignedBuffer floats;
  const void* from = tensor.data;
  if (tensor.dtype != DType::float32) {
    floats = AlignedBuffer(static_cast<std::size_t>(count) * sizeof(float));
    kernels_for(tensor.dtype, isa).to_float(from, floats.as<float>(), count);
    from = floats.data();
  }
  buffer = AlignedBuffer(static_cast<std::size_t>(count) * size_of(to));
  kernels_for(to, isa).from_float(static_cast<const float*>(from), buffer.data(), count);
  return buffer.data();
}

}  // namespace atl::compute
