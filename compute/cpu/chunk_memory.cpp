#include "compute/cpu/chunk_memory.hpp"

#include <algorithm>

#include "compute/across_rows.hpp"
#include "compute/cpu/gemm.hpp"

namespace atl::compute {

CpuChunkMemory::CpuChunkMemory(const BackendOptions& options, HostArena& arena) {
  const ModelShape& shape = options.shape;
  const std::int64_t tokens = whole_tiles(options.max_chunk_tokens);
  const std::int64_t pairs = tokens * shape.top_k;
  const auto rows_of = [&](std::int64_t rows, std::int64_t width) {
    return arena.buffer(rows * width * static_cast<std::int64_t>(size_of(options.dtype)));
  };
  x = arena.buffer(tokens * shape.hidden * static_cast<std::int64_t>(sizeof(float)));
  qkv = rows_of(tokens, shape.q_width() + 2 * shape.kv_width());
  context = rows_of(tokens, shape.q_width());
  send = rows_of(pairs, shape.hidden);
  combined = rows_of(pairs, shape.hidden);
  router_logits = arena.vector<float>(tokens * shape.num_experts);
  experts = arena.vector<std::int32_t>(pairs);
  weights = arena.vector<float>(pairs);
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

std::int64_t grown_receive_capacity(std::int64_t rows, std::int64_t before) {
  return rows <= before ? before : std::max({rows, 2 * before, std::int64_t{tile_rows}});
}

std::int64_t receive_bytes(const BackendOptions& options, std::int64_t capacity) {
  return 2 * capacity * options.shape.hidden * static_cast<std::int64_t>(size_of(options.dtype));
}

}  // namespace atl::compute
