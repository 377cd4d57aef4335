#include "compute/cuda/model.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "compute/convert.hpp"
#include "compute/cuda/error.hpp"
#include "compute/error.hpp"
#include "compute/loading.hpp"

namespace atl::compute::cuda {

namespace {

/// Calls visit(weight, layer, local_expert) for every weight that this rank must have.
template <class Visit>
void for_each_weight(const BackendOptions& options, Visit&& visit) {
  const ModelShape& shape = options.shape;
  const bool gated = shape.activation == Activation::swiglu;
  const auto mlp = [&](int layer, int expert) {
    visit(Weight::up, layer, expert);
    if (gated) visit(Weight::gate, layer, expert);
    visit(Weight::down, layer, expert);
  };
  visit(Weight::embedding, -1, -1);
  visit(Weight::final_norm, -1, -1);
  visit(Weight::lm_head, -1, -1);
  for (int layer = 0; layer < shape.num_layers; ++layer) {
    visit(Weight::attention_norm, layer, -1);
    visit(Weight::qkv, layer, -1);
    if (shape.qk_norm != QkNorm::none) {
      visit(Weight::q_norm, layer, -1);
      visit(Weight::k_norm, layer, -1);
    }
    visit(Weight::o, layer, -1);
    visit(Weight::ffn_norm, layer, -1);
    if (shape.is_dense(layer)) {
      mlp(layer, -1);
      continue;
    }
    visit(Weight::router, layer, -1);
    for (int expert = 0; expert < options.num_local_experts; ++expert) mlp(layer, expert);
  }
}

bool is_norm(Weight weight) {
  return weight == Weight::attention_norm || weight == Weight::ffn_norm ||
         weight == Weight::q_norm || weight == Weight::k_norm || weight == Weight::final_norm;
}

void to_device(void* device, const void* host, std::size_t bytes) {
  check(cudaMemcpy(device, host, bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
}

int widest_mlp(const ModelShape& shape) {
  int widest = 1;
  for (int layer = 0; layer < shape.num_layers; ++layer) {
    widest = std::max(widest, shape.is_dense(layer) ? shape.intermediate : shape.moe_intermediate);
  }
  return widest;
}

}  // namespace

int num_positions(const BackendOptions& options) {
  return static_cast<int>(
      std::min<std::int64_t>(options.shape.max_positions, options.num_pages * options.page_tokens));
}

CudaWeights::CudaWeights(const BackendOptions& options, Arena& arena)
    : layers(static_cast<std::size_t>(options.shape.num_layers)) {
  const ModelShape& shape = options.shape;
  for (CudaLayer& layer : layers) {
    layer.experts.resize(static_cast<std::size_t>(options.num_local_experts));
  }
  for_each_weight(options, [&](Weight weight, int layer, int expert) {
    const Extent extent = extent_of(weight, shape, expert >= 0);
    const std::int64_t count = extent.rows * extent.cols;
    if (is_norm(weight)) {
      *norm_place(weight, layer) = arena.take<float>(count);
    } else {
      *place(weight, layer, expert) =
          arena.take_bytes(static_cast<std::size_t>(count) * size_of(options.dtype));
    }
  });
  angles = arena.take<float>(std::int64_t{num_positions(options)} * shape.head_dim);
  send_order = arena.take<std::int32_t>(shape.num_experts);
}

float** CudaWeights::norm_place(Weight weight, int layer) {
  if (weight == Weight::final_norm) return &final_norm;
  CudaLayer& weights = layers[static_cast<std::size_t>(layer)];
  switch (weight) {
    case Weight::attention_norm:
      return &weights.attention_norm;
    case Weight::ffn_norm:
      return &weights.ffn_norm;
    case Weight::q_norm:
      return &weights.q_norm;
    default:
      return &weights.k_norm;
  }
}

void** CudaWeights::place(Weight weight, int layer, int local_expert) {
  if (weight == Weight::embedding) return &embedding;
  if (weight == Weight::lm_head) return &lm_head;
  CudaLayer& weights = layers[static_cast<std::size_t>(layer)];
  CudaMlp& mlp =
      local_expert >= 0 ? weights.experts[static_cast<std::size_t>(local_expert)] : weights.dense;
  switch (weight) {
    case Weight::qkv:
      return &weights.qkv;
    case Weight::o:
      return &weights.o;
    case Weight::router:
      return &weights.router;
    case Weight::up:
      return &mlp.up;
    case Weight::gate:
      return &mlp.gate;
    default:
      return &mlp.down;
  }
}

void CudaWeights::load(const BackendOptions& options, Weight weight, int layer, int local_expert,
                       const void* data, std::int64_t count) {
  if (is_norm(weight)) {
    float* const to = *norm_place(weight, layer);
    if (to == nullptr) return;  // a model without norms of q and k may bring some
    std::vector<float> floats(static_cast<std::size_t>(count));
    to_float(data, options.dtype, floats);
    to_device(to, floats.data(), floats.size() * sizeof(float));
  } else {
    void* const to = *place(weight, layer, local_expert);
    require(to != nullptr, "this model has no weight {} in layer {}", name_of(weight), layer);
    to_device(to, data, static_cast<std::size_t>(count) * size_of(options.dtype));
  }
  loaded_.emplace(weight, layer, local_expert);
}

void CudaWeights::finish(const BackendOptions& options) {
  for_each_weight(options, [&](Weight weight, int layer, int expert) {
    require(loaded_.contains({weight, layer, expert}), "weight {} of layer {}{} was not loaded",
            name_of(weight), layer, expert < 0 ? "" : fmt::format(", local expert {}", expert));
  });
  const ModelShape& shape = options.shape;
  const int half = shape.head_dim / 2;
  const int positions = num_positions(options);
  std::vector<float> table(static_cast<std::size_t>(positions) *
                           static_cast<std::size_t>(shape.head_dim));
  for (int i = 0; i < half; ++i) {
    const double frequency = std::pow(shape.rope_theta, -2.0 * i / shape.head_dim);
    for (int position = 0; position < positions; ++position) {
      const auto row =
          static_cast<std::size_t>(position) * static_cast<std::size_t>(shape.head_dim);
      table[row + static_cast<std::size_t>(i)] = static_cast<float>(std::cos(position * frequency));
      table[row + static_cast<std::size_t>(half + i)] =
          static_cast<float>(std::sin(position * frequency));
    }
  }
  if (!table.empty()) to_device(angles, table.data(), table.size() * sizeof(float));
  if (!options.send_order.empty()) {
    to_device(send_order, options.send_order.data(),
              options.send_order.size() * sizeof(std::int32_t));
  }
  // Copies from pageable memory may return before they are done, and the backend's streams do not
  // wait for the default one.
  check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
}

KvCache::KvCache(const BackendOptions& options, Arena& arena) {
  const ModelShape& shape = options.shape;
  const auto bytes =
      static_cast<std::size_t>(options.num_pages * options.page_tokens * shape.kv_width()) *
      size_of(options.dtype);
  for (int layer = 0; layer < shape.num_layers; ++layer) {
    KvPages pages;
    pages.keys = arena.take_bytes(bytes);
    pages.values = arena.take_bytes(bytes);
    pages.num_kv_heads = shape.num_kv_heads;
    pages.head_dim = shape.head_dim;
    pages.page_tokens = options.page_tokens;
    layers.push_back(pages);
  }
}

Workspace::Workspace(const BackendOptions& options, Arena& arena) {
  // Most memory for the inner rows of an MLP, and for logits; enough rows to fill the device.
  constexpr std::int64_t inner_bytes = std::int64_t{512} << 20;
  constexpr std::int64_t logits_bytes = std::int64_t{64} << 20;
  const ModelShape& shape = options.shape;
  const std::int64_t tokens = options.max_chunk_tokens;
  const std::size_t element = size_of(options.dtype);
  const auto rows_of = [&](std::int64_t rows, std::int64_t width) {
    return arena.take_bytes(static_cast<std::size_t>(rows * width) * element);
  };
  const std::int64_t widest = widest_mlp(shape);
  const std::int64_t fitting = inner_bytes / (widest * static_cast<std::int64_t>(element + 4));
  const std::int64_t useful = std::max<std::int64_t>(256, 2 * tokens * std::max(1, shape.top_k));
  mlp_rows = static_cast<int>(
      std::clamp<std::int64_t>(fitting, 128, std::min<std::int64_t>(useful, 8192)));
  vocab_rows = static_cast<int>(std::clamp<std::int64_t>(
      logits_bytes / (std::int64_t{4} * shape.vocab), 1, std::min<std::int64_t>(tokens, 1024)));
  kv_rows = rows_of(2 * tokens, shape.kv_width());
  out = rows_of(tokens, shape.hidden);
  inner = rows_of(mlp_rows, widest);
  inner_float = arena.take<float>(mlp_rows * widest);
  gathered = rows_of(mlp_rows, shape.hidden);
  results = rows_of(mlp_rows, shape.hidden);
  head = rows_of(vocab_rows, shape.hidden);
  logits = arena.take<float>(std::int64_t{vocab_rows} * shape.vocab);
  router = arena.take<float>(tokens * shape.num_experts);
  route_scratch =
      arena.take<std::int32_t>(route_scratch_ints(options.max_chunk_tokens, shape.num_experts));
  attention = arena.take<float>(attention_workspace_floats(shape, options.max_chunk_tokens));
  gemm = arena.take_bytes(CudaGemm::workspace_bytes);
  pages = arena.take<std::int32_t>(most_pages(options));
}

}  // namespace atl::compute::cuda
