// The CPU backend's experts: gated or plain MLPs over tiles of rows.

#include <algorithm>

#include "compute/cpu/operations.hpp"

namespace atl::compute {

namespace {

/// Rows of one expert, at most tile_rows, from as many blocks as that takes.
struct Tile {
  int expert = 0;
  int rows = 0;
  std::size_t block = 0;  // the first
  int begin = 0;          // its row to start at
};

/// Calls visit(tile) so that the tiles cover all rows of the blocks in order.
template <class Visit>
void for_tiles(std::span<const RowBlock> blocks, const Visit& visit) {
  std::size_t block = 0;
  int taken = 0;  // rows of blocks[block]
  while (block < blocks.size()) {
    Tile tile{blocks[block].local_expert, 0, block, taken};
    while (block < blocks.size() && blocks[block].local_expert == tile.expert &&
           tile.rows < tile_rows) {
      const int count = std::min(tile_rows - tile.rows, blocks[block].num_rows - taken);
      tile.rows += count;
      taken += count;
      if (taken == blocks[block].num_rows) {
        ++block;
        taken = 0;
      }
    }
    if (tile.rows > 0) visit(tile);
  }
}

/// Calls visit(block, first row in it, number of rows) for each piece of a tile.
template <class Visit>
void for_pieces(std::span<const RowBlock> blocks, const Tile& tile, const Visit& visit) {
  int begin = tile.begin;
  int done = 0;
  for (std::size_t b = tile.block; done < tile.rows; ++b, begin = 0) {
    const int count = std::min(tile.rows - done, blocks[b].num_rows - begin);
    if (count > 0) visit(blocks[b], begin, count);
    done += count;
  }
}

}  // namespace

void CpuLayers::MlpRows::clear(std::int64_t most) {
  // Products point into these, which must not move while they grow.
  in.clear();
  in.reserve(static_cast<std::size_t>(most));
  inner.clear();
  inner.reserve(static_cast<std::size_t>(most));
  out.clear();
  out.reserve(static_cast<std::size_t>(most));
  // A product has at least a row.
  up.clear();
  up.reserve(static_cast<std::size_t>(most));
  down.clear();
  down.reserve(static_cast<std::size_t>(most));
}

void CpuLayers::MlpRows::add(const CpuMlp& mlp, int rows, Finish finish) {
  const std::size_t first = in.size() - static_cast<std::size_t>(rows);
  const bool gated = !mlp.gate.empty();
  up.push_back({&mlp.up, gated ? &mlp.gate : nullptr, gated ? Finish::swiglu : Finish::gelu, rows,
                in.data() + first, inner.data() + first});
  down.push_back({&mlp.down, nullptr, finish, rows, inner.data() + first, out.data() + first});
}

void CpuLayers::mlp(CpuChunk& chunk, int layer) {
  const CpuLayer& weights = layers_[static_cast<std::size_t>(layer)];
  const std::int64_t at_once = gemm_->rows_at_once();
  norm(chunk, weights.ffn_norm, work_.h.data());
  for (std::int64_t first = 0; first < chunk.num_tokens(); first += at_once) {
    const std::int64_t end = std::min(first + at_once, chunk.num_tokens());
    mlp_.clear(at_once);
    for (std::int64_t t = first; t < end; ++t) {
      mlp_.in.push_back(row(work_.h, t, shape_.hidden));
      mlp_.inner.push_back(row(work_.inner, t - first, shape_.intermediate));
      mlp_.out.push_back(x_row(chunk, t));
      const int rows = static_cast<int>((t - first) % tile_rows + 1);
      if (rows == tile_rows || t + 1 == end) mlp_.add(weights.dense, rows, Finish::add);
    }
    gemm_->run(mlp_.up);
    gemm_->run(mlp_.down);
  }
}

void CpuLayers::experts(CpuChunk& chunk, int layer, std::span<const RowBlock> blocks,
                        ExpertPart part) {
  const CpuLayer& weights = layers_[static_cast<std::size_t>(layer)];
  const int width = shape_.moe_intermediate;
  const int hidden = shape_.hidden;
  std::int64_t at_once = gemm_->rows_at_once();
  if (part != ExpertPart::all) {
    at_once = 0;
    for (const RowBlock& block : blocks) at_once += block.num_rows;
    if (part == ExpertPart::up) chunk.reserve_inner(at_once * width * element_bytes_);
  }
  const AlignedBuffer& inner = part == ExpertPart::all ? work_.inner : chunk.inner;
  const auto run = [&] {
    if (part != ExpertPart::down) gemm_->run(mlp_.up);
    if (part != ExpertPart::up) gemm_->run(mlp_.down);
    mlp_.clear(at_once);
  };
  mlp_.clear(at_once);
  for_tiles(blocks, [&](const Tile& tile) {
    if (static_cast<std::int64_t>(mlp_.in.size()) + tile.rows > at_once) run();
    for_pieces(blocks, tile, [&](const RowBlock& block, int begin, int count) {
      for (int i = begin; i < begin + count; ++i) {
        const auto at = static_cast<std::int64_t>(mlp_.in.size());
        mlp_.in.push_back(row(const_cast<void*>(block.in), i, hidden));
        mlp_.inner.push_back(row(inner, at, width));
        mlp_.out.push_back(row(block.out, i, hidden));
      }
    });
    mlp_.add(weights.experts[static_cast<std::size_t>(tile.expert)], tile.rows, Finish::rounded);
  });
  run();
}

}  // namespace atl::compute
