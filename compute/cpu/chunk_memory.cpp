#include "compute/cpu/chunk_memory.hpp"

#include <algorithm>

#include "compute/across_rows.hpp"
#include "compute/cpu/gemm.hpp"

namespace atl::compute {

CpuSharedMemory::CpuSharedMemory(const BackendOptions& options, HostArena& arena) {
  const ModelShape& shape = options.shape;
  const AttentionShare& share = options.part.attention;
  if (!share.shared()) return;
  const auto element = static_cast<std::int64_t>(size_of(options.dtype));
  const std::int64_t all = options.most_attention_rows();
  // GEMMs read and write whole tiles.
  const std::int64_t tiles = whole_tiles(all);
  const std::int64_t width = own_heads(shape, share).heads_width();
  normed = arena.buffer(tiles * shape.hidden * element);
  if (shape.qk_norm == QkNorm::whole_row) {
    head_sums = arena.buffer(share.members * all * share.sums_per_member(shape) *
                             static_cast<std::int64_t>(sizeof(float)));
  }
  switch (share.output) {
    case OutputCut::rows:
      heads_send = arena.buffer(all * width * element);
      heads_recv = arena.buffer(all * width * element);
      break;
    case OutputCut::columns:
    case OutputCut::either:
      heads_recv = arena.buffer(share.members * all * width * element);
      output_send = arena.buffer(tiles * (shape.hidden / share.members) * element);
      output_recv = arena.buffer(all * (shape.hidden / share.members) * element);
      break;
    case OutputCut::sum:
      heads_send = arena.buffer(tiles * width * element);
      output_send = arena.buffer(all * shape.hidden * static_cast<std::int64_t>(sizeof(float)));
      output_recv = arena.buffer(all * shape.hidden * static_cast<std::int64_t>(sizeof(float)));
      break;
    case OutputCut::sum_bf16:
      heads_send = arena.buffer(tiles * width * element);
      output_send = arena.buffer(tiles * shape.hidden * element);
      output_recv = arena.buffer(all * shape.hidden * element);
      break;
  }
}

CpuChunkMemory::CpuChunkMemory(const BackendOptions& options, HostArena& arena) {
  const ModelShape& shape = options.shape;
  const std::int64_t tokens = whole_tiles(options.max_chunk_tokens);
  const std::int64_t pairs = tokens * shape.top_k;
  const auto rows_of = [&](std::int64_t rows, std::int64_t width) {
    return arena.buffer(rows * width * static_cast<std::int64_t>(size_of(options.dtype)));
  };
  x = arena.buffer(tokens * shape.hidden * static_cast<std::int64_t>(sizeof(float)));
  const AttentionShare& share = options.part.attention;
  qkv = rows_of(whole_tiles(options.most_attention_rows()), own_heads(shape, share).qkv_width());
  if (!share.shared()) context = rows_of(tokens, shape.heads_width());
  shared = CpuSharedMemory(options, arena);
  send = rows_of(pairs, shape.hidden);
  combined = rows_of(pairs, shape.hidden);
  router_logits = arena.vector<float>(tokens * shape.num_experts);
  experts = arena.vector<std::int32_t>(pairs);
  weights = arena.vector<float>(pairs);
  given_up = arena.vector<float>(tokens);
  order = RowOrder(options, tokens, arena);
  if (!options.across) return;
  across_send = arena.buffer(most_rows_for_nodes(options) *
                             across_row(shape.hidden, options.dtype, shape.top_k).bytes);
  across_return = rows_of(pairs, shape.hidden);
}

CpuForwardMemory::CpuForwardMemory(const BackendOptions& options, HostArena& arena,
                                   const ForwardRoom& room) {
  const ModelShape& shape = options.shape;
  const std::int64_t rows = most_rows_for_nodes(options) + room.arrived;
  recv = arena.buffer(room.arrived * across_row(shape.hidden, options.dtype, shape.top_k).bytes);
  done = arena.buffer(room.returned * shape.hidden *
                      static_cast<std::int64_t>(size_of(options.dtype)));
  order = ForwardOrder(options, rows, arena);
}

CpuExpertMemory::CpuExpertMemory(const BackendOptions& options, HostArena& arena,
                                 const ExpertRoom& room) {
  const ModelShape& shape = options.shape;
  const auto rows_of = [&](std::int64_t count, std::int64_t width) {
    return arena.buffer(count * width * static_cast<std::int64_t>(size_of(options.dtype)));
  };
  rows = rows_of(room.all, shape.hidden);
  inner = rows_of(room.all, shape.moe_intermediate);
  send = rows_of(room.all, shape.hidden / options.part.expert_share.members);
  recv = rows_of(room.own, shape.hidden);
}

std::int64_t grown_receive_capacity(std::int64_t rows, std::int64_t before) {
  return rows <= before ? before : std::max({rows, 2 * before, std::int64_t{tile_rows}});
}

std::int64_t receive_bytes(const BackendOptions& options, std::int64_t capacity) {
  return 2 * capacity * options.shape.hidden * static_cast<std::int64_t>(size_of(options.dtype));
}

}  // namespace atl::compute
