#include "compute/cuda/plan/chunk_memory.hpp"

#include <algorithm>

#include "compute/across_rows.hpp"
#include "compute/cuda/plan/chunk_plan.hpp"
#include "compute/cuda/plan/kv.hpp"

namespace atl::compute::cuda {

std::size_t input_bytes(const BackendOptions& options) {
  const auto tokens = static_cast<std::size_t>(options.max_chunk_tokens);
  const auto rows = static_cast<std::size_t>(options.most_attention_rows());
  const auto tiles = static_cast<std::size_t>(ChunkPlan::most_tiles(options));
  const auto merges = static_cast<std::size_t>(ChunkPlan::most_merges(options));
  const std::size_t generated = options.shape.latent.used() ? rows : 0;
  const auto pages = rows * static_cast<std::size_t>(most_pages(options));
  return upload_aligned(tokens * sizeof(std::int32_t)) +
         2 * upload_aligned(rows * sizeof(std::int32_t)) +
         upload_aligned(pages * sizeof(std::int32_t)) +
         upload_aligned(tiles * sizeof(AttentionTile)) +
         upload_aligned(merges * sizeof(AttentionMerge)) +
         3 * upload_aligned(generated * sizeof(std::int32_t));
}

std::size_t head_bytes(const BackendOptions& options) {
  return static_cast<std::size_t>(options.max_chunk_tokens) * (sizeof(Draw) + sizeof(std::int32_t));
}

std::int64_t most_outcomes(const BackendOptions& options) {
  return std::int64_t{options.max_chunk_tokens} * (1 + most_tops);
}

std::int64_t row_bytes(const BackendOptions& options) {
  return options.shape.hidden * static_cast<std::int64_t>(size_of(options.dtype));
}

std::int64_t receive_bytes(std::int64_t rows, std::int64_t row_bytes) {
  constexpr auto alignment = static_cast<std::int64_t>(Arena::alignment);
  return 2 * ((rows * row_bytes + alignment - 1) / alignment * alignment);
}

int most_counts(const BackendOptions& options) {
  return options.part.most_places() + 2 * options.part.num_nodes();
}

ForwardRoom first_forward_room(const BackendOptions& options) {
  return options.across ? even_forward_room(options) : ForwardRoom{};
}

std::int64_t inner_bytes(const BackendOptions& options, std::int64_t receive_rows,
                         std::int64_t forwarded_rows) {
  // Of shared experts they are where members send theirs to.
  if (!options.split_experts || options.part.expert_share.shared()) return 0;
  const std::int64_t local = options.part.most_experts();
  const std::int64_t own =
      options.max_chunk_tokens * std::min<std::int64_t>(options.shape.top_k, local);
  const std::int64_t rows = receive_rows + std::max(own, forwarded_rows);
  // Each tile of rows begins aligned; an expert has a tile more than its full ones, and those of
  // long runs have at least a thousand rows.
  const std::int64_t tiles = 2 * local + rows / 64;
  return rows * options.shape.moe_intermediate * static_cast<std::int64_t>(size_of(options.dtype)) +
         tiles * static_cast<std::int64_t>(Arena::alignment);
}

SharedMemory::SharedMemory(const BackendOptions& options, Arena& arena) {
  const ModelShape& shape = options.shape;
  const AttentionShare& share = options.part.attention;
  if (!share.shared()) return;
  const auto rows_of = [&](std::int64_t count, std::int64_t width) {
    return arena.take_bytes(static_cast<std::size_t>(count * width) * size_of(options.dtype));
  };
  const std::int64_t all = options.most_attention_rows();
  const std::int64_t width = shape.heads_width() / share.members;
  normed = rows_of(all, shape.hidden);
  if (shape.qk_norm == QkNorm::whole_row) {
    head_sums = arena.take<float>(share.members * all * share.sums_per_member(shape));
  }
  switch (share.output) {
    case OutputCut::rows:
      heads_send = rows_of(all, width);
      heads_recv = rows_of(all, width);
      break;
    case OutputCut::columns:
    case OutputCut::either:
      heads_recv = rows_of(share.members * all, width);
      output_send = rows_of(all, shape.hidden / share.members);
      output_recv = rows_of(all, shape.hidden / share.members);
      break;
    case OutputCut::sum:
      heads_send = rows_of(all, width);
      output_send = arena.take<float>(all * shape.hidden);
      output_recv = arena.take<float>(all * shape.hidden);
      break;
    case OutputCut::sum_bf16:
      heads_send = rows_of(all, width);
      output_send = rows_of(all, shape.hidden);
      output_recv = rows_of(all, shape.hidden);
      break;
  }
}

ChunkMemory::ChunkMemory(const BackendOptions& options, Arena& arena) {
  const ModelShape& shape = options.shape;
  const std::int64_t tokens = options.max_chunk_tokens;
  const std::int64_t pairs = tokens * shape.top_k;
  const auto rows_of = [&](std::int64_t count, std::int64_t width) {
    return arena.take_bytes(static_cast<std::size_t>(count * width) * size_of(options.dtype));
  };
  x = arena.take<float>(tokens * shape.hidden);
  normed = rows_of(tokens, shape.hidden);
  const AttentionShare& share = options.part.attention;
  qkv = rows_of(options.most_attention_rows(), own_heads(shape, share).qkv_width());
  if (!share.shared()) context = rows_of(tokens, shape.heads_width());
  shared = SharedMemory(options, arena);
  if (!options.across) {
    send = rows_of(pairs, shape.hidden);
    combined = rows_of(pairs, shape.hidden);
  }
  experts = arena.take<std::int32_t>(pairs);
  weights = arena.take<float>(pairs);
  chosen = arena.take<std::int32_t>(pairs);
  slots = arena.take<std::int32_t>(pairs);
  counts = arena.take<std::int32_t>(most_counts(options));
  inputs = arena.take<std::byte>(static_cast<std::int64_t>(input_bytes(options)));
  head = arena.take<std::byte>(static_cast<std::int64_t>(head_bytes(options)));
  logprobs = arena.take<ScoredToken>(tokens);
  sampled = arena.take<SampledToken>(most_outcomes(options));
  if (!options.across) return;
  const AcrossRow form = across_row(shape.hidden, options.dtype, shape.top_k);
  across_send =
      arena.take_bytes(static_cast<std::size_t>(most_rows_for_nodes(options) * form.bytes));
  across_return = rows_of(pairs, shape.hidden);
  sent = arena.take<std::int32_t>(pairs);
}

ForwardMemory::ForwardMemory(const BackendOptions& options, Arena& arena, const ForwardRoom& room) {
  if (!options.across) return;
  const ModelShape& shape = options.shape;
  const auto rows_of = [&](std::int64_t rows, std::int64_t bytes) {
    return arena.take_bytes(static_cast<std::size_t>(rows * bytes));
  };
  const std::int64_t rows = most_rows_for_nodes(options) + room.arrived;
  send = rows_of(room.forwarded, row_bytes(options));
  combined = rows_of(room.forwarded, row_bytes(options));
  recv = rows_of(room.arrived, across_row(shape.hidden, options.dtype, shape.top_k).bytes);
  done = rows_of(room.returned, row_bytes(options));
  slots = arena.take<std::int32_t>(rows * shape.top_k);
  returns = arena.take<std::int32_t>(rows);
}

ExpertMemory::ExpertMemory(const BackendOptions& options, Arena& arena, const ExpertRoom& room) {
  const ModelShape& shape = options.shape;
  const ExpertShare& share = options.part.expert_share;
  if (!share.shared()) return;
  const auto rows_of = [&](std::int64_t count, std::int64_t width) {
    return arena.take_bytes(static_cast<std::size_t>(count * width) * size_of(options.dtype));
  };
  rows = rows_of(room.all, shape.hidden);
  inner = rows_of(room.all, shape.moe_intermediate);
  send = rows_of(room.all, shape.hidden / share.members);
  recv = rows_of(room.own, shape.hidden);
}

}  // namespace atl::compute::cuda
