#include "compute/cuda/plan/workspace.hpp"

#include <algorithm>

#include "compute/cuda/plan/chunk_plan.hpp"
#include "compute/cuda/plan/kv.hpp"
#include "compute/weight_cut.hpp"

namespace atl::compute::cuda {

namespace {

int widest_mlp(const ModelShape& shape) {
  int widest = 1;
  for (int layer = 0; layer < shape.num_layers; ++layer) {
    widest = std::max(widest, shape.is_dense(layer) ? shape.intermediate : shape.moe_intermediate);
    if (!shape.is_dense(layer)) widest = std::max(widest, shape.shared_intermediate);
  }
  return widest;
}

/// Elements of the largest matrix that is kept as codes.
std::int64_t largest_coded(const BackendOptions& options) {
  std::int64_t most = 0;
  for_each_weight(options.shape, options.part, [&](const WeightInfo& info, int, int) {
    if (!info.coding.used()) return;
    most = std::max(most, own_weight(options.shape, options.part, info).num_elements());
  });
  return most;
}

LatentWorkspace latent_workspace(const BackendOptions& options, Arena& arena) {
  LatentWorkspace work;
  const ModelShape& shape = options.shape;
  if (!shape.latent.used()) return work;
  const auto elements = [&](std::int64_t count) {
    return arena.take_bytes(static_cast<std::size_t>(count) * size_of(options.dtype));
  };
  const LatentHeads heads(options);
  const std::int64_t rows = options.most_attention_rows();
  if (shape.latent.queries > 0) {
    work.projected = elements(rows * projected_width(options));
    work.queries = elements(rows * shape.latent.queries);
  }
  const std::int64_t pairs =
      std::min<std::int64_t>(rows, latent_rows_at_once) * heads.absorbed.num_heads;
  work.absorbed = elements(pairs * shape.latent.width());
  work.outputs = elements(pairs * shape.latent.keys);
  const std::int64_t together = std::min(heads.positions, latents_at_once);
  work.latents = elements(together * shape.latent.keys);
  work.k_rows = elements(together * heads.at_once * (shape.head_dim - shape.latent.rope));
  work.v_rows = elements(together * heads.at_once * shape.values_dim());
  const std::int64_t expanded = std::int64_t{heads.at_once} * heads.positions;
  work.keys = elements(expanded * shape.head_dim);
  work.values = elements(expanded * shape.values_dim());
  work.zeros = arena.take<std::int32_t>(rows);
  return work;
}

}  // namespace

std::int64_t projected_width(const BackendOptions& options) {
  const OwnHeads own = own_heads(options.shape, options.part.attention);
  const LatentAttention& latent = options.shape.latent;
  if (latent.used() && latent.queries > 0) return latent.queries + latent.width();
  return own.qkv_width();
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
  const AttentionShare& share = options.part.attention;
  const OwnHeads own = own_heads(shape, share);
  kv_rows = rows_of(tokens, own.qkv_width() - own.q_width());
  out = rows_of(tokens, shape.hidden);
  if (shape.qkv_bias) {
    qkv_sums = arena.take<float>(options.most_attention_rows() * projected_width(options));
  }
  if (shape.output_bias) {
    out_sums = arena.take<float>(options.most_attention_rows() * shape.hidden);
  }
  if (shape.expert_bias) down_sums = arena.take<float>(std::int64_t{mlp_rows} * shape.hidden);
  latent = latent_workspace(options, arena);
  unpacked = rows_of(largest_coded(options), 1);
  if (share.shared() && !is_sum(share.output)) {
    const bool all = share.output != OutputCut::rows;
    heads = rows_of(all ? options.most_attention_rows() : tokens, shape.heads_width());
  }
  inner = rows_of(mlp_rows, widest);
  inner_float = arena.take<float>(mlp_rows * widest);
  gathered = rows_of(mlp_rows, shape.hidden);
  results = rows_of(mlp_rows, shape.hidden);
  head = rows_of(vocab_rows, shape.hidden);
  logits = arena.take<float>(std::int64_t{vocab_rows} * shape.vocab);
  changes = arena.take<LogitChange>(shape.vocab);
  router = arena.take<float>(tokens * shape.num_experts);
  const int places = options.part.most_places();
  route_scratch =
      arena.take<std::int32_t>(group_scratch_ints(places + 2 * options.part.num_nodes()));
  if (options.across) forward_scratch = arena.take<std::int32_t>(group_scratch_ints(places + 2));
  attention = arena.take<float>(ChunkPlan::workspace_floats(options));
  attention_totals = arena.take<float>(ChunkPlan::totals_floats(options));
  gemm = arena.take_bytes(gemm_workspace_bytes);
  pages = arena.take<std::int32_t>(most_pages(options));
}

}  // namespace atl::compute::cuda
