#include "compute/cuda/plan/workspace.hpp"

#include <algorithm>

#include "compute/cuda/plan/attention_plan.hpp"
#include "compute/cuda/plan/kv.hpp"

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

}  // namespace

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
  kv_rows = rows_of(2 * tokens, own_heads(shape, share).kv_width());
  out = rows_of(tokens, shape.hidden);
  if (shape.qkv_bias) {
    qkv_sums =
        arena.take<float>(options.most_attention_rows() * own_heads(shape, share).qkv_width());
  }
  if (share.shared() && !is_sum(share.output)) {
    const bool all = share.output != OutputCut::rows;
    heads = rows_of(all ? options.most_attention_rows() : tokens, shape.q_width());
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
  attention = arena.take<float>(attention_workspace_floats(
      attended_shape(options), static_cast<int>(options.most_attention_rows())));
  attention_totals = arena.take<float>(attention_totals_floats(shape));
  gemm = arena.take_bytes(gemm_workspace_bytes);
  pages = arena.take<std::int32_t>(most_pages(options));
}

}  // namespace atl::compute::cuda
