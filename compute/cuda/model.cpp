#include "compute/cuda/model.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "compute/convert.hpp"
#include "compute/cuda/error.hpp"
#include "compute/error.hpp"

namespace atl::compute::cuda {

namespace {

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
  for (std::size_t i = 0; i < layers.size(); ++i) {
    layers[i].experts.resize(options.part.experts[i].size());
  }
  for_each_weight(shape, options.part, [&](const WeightInfo& info, int, int local_expert) {
    if (info.use == Use::vector) {
      *vector_place(info) = arena.take<float>(info.rows);
    } else {
      *matrix_place(info, local_expert) =
          arena.take_bytes(static_cast<std::size_t>(info.num_elements()) * size_of(options.dtype));
    }
  });
  angles = arena.take<float>(std::int64_t{num_positions(options)} * shape.head_dim);
  send_order = arena.take<std::int32_t>(shape.num_experts);
}

float** CudaWeights::vector_place(const WeightInfo& info) {
  if (info.id == Weight::final_norm) return &final_norm;
  CudaLayer& weights = layers[static_cast<std::size_t>(info.layer)];
  switch (info.id) {
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

void** CudaWeights::matrix_place(const WeightInfo& info, int local_expert) {
  if (info.id == Weight::embedding) return &embedding;
  if (info.id == Weight::lm_head) return &lm_head;
  CudaLayer& weights = layers[static_cast<std::size_t>(info.layer)];
  CudaMlp& mlp =
      local_expert >= 0 ? weights.experts[static_cast<std::size_t>(local_expert)] : weights.dense;
  switch (info.id) {
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

void CudaWeights::load(const BackendOptions& options, const WeightInfo& info, int local_expert,
                       const void* data) {
  const auto count = static_cast<std::size_t>(info.num_elements());
  if (info.use == Use::vector) {
    std::vector<float> floats(count);
    to_float(data, options.dtype, floats);
    to_device(*vector_place(info), floats.data(), floats.size() * sizeof(float));
  } else {
    to_device(*matrix_place(info, local_expert), data, count * size_of(options.dtype));
  }
}

void CudaWeights::finish(const BackendOptions& options) {
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
  const std::vector<std::int32_t>& order = options.part.send_order;
  if (!order.empty()) {
    to_device(send_order, order.data(), order.size() * sizeof(std::int32_t));
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
