// The CPU backend's experts where several ranks share them: each has some inner columns and some
// columns of the results, of the rows of all.

#include <cstring>

#include "compute/cpu/expert_tiles.hpp"
#include "compute/cpu/operations.hpp"

namespace atl::compute {

void CpuLayers::shared_experts(CpuChunk& chunk, int layer, std::span<const RowBlock> blocks,
                               ExpertPart part) {
  const CpuLayer& weights = layers_[static_cast<std::size_t>(layer)];
  switch (part) {
    case ExpertPart::collect:
      return collect_rows(chunk, blocks);
    case ExpertPart::up:
      return shared_up(chunk, weights, blocks);
    case ExpertPart::down:
      return shared_down(chunk, weights, blocks);
    case ExpertPart::write:
      return write_rows(chunk, blocks);
    case ExpertPart::all:
      break;  // refused before
  }
}

void CpuLayers::collect_rows(CpuChunk& chunk, std::span<const RowBlock> blocks) {
  std::int64_t at = chunk.first_expert_row;
  for (const RowBlock& block : blocks) {
    if (block.num_rows == 0) continue;
    const auto bytes = static_cast<std::size_t>(block.num_rows * shape_.hidden * element_bytes_);
    std::memcpy(row(chunk.expert_rows, at, shape_.hidden), block.in, bytes);
    at += block.num_rows;
  }
}

void CpuLayers::shared_up(CpuChunk& chunk, const CpuLayer& weights,
                          std::span<const RowBlock> blocks) {
  const ExpertShare& share = options_.part.expert_share;
  const int width = shape_.moe_intermediate / share.members;
  const std::int64_t row_bytes = shape_.hidden * element_bytes_;
  const std::int64_t at_once = gemm_->rows_at_once();
  const auto run = [&] {
    gemm_->run(mlp_.up);
    mlp_.clear(at_once);
  };
  mlp_.clear(at_once);
  for_tiles(blocks, [&](const ExpertTile& tile) {
    if (static_cast<std::int64_t>(mlp_.in.size()) + tile.rows > at_once) run();
    const std::size_t begin = mlp_.in.size();
    for_pieces(blocks, tile, [&](const RowBlock& block, int first, int count) {
      const char* from = static_cast<const char*>(block.in) + first * row_bytes;
      const std::int64_t at = (from - static_cast<const char*>(chunk.expert_rows)) / row_bytes;
      for (int i = 0; i < count; ++i) {
        mlp_.in.push_back(from + i * row_bytes);
        mlp_.inner.push_back(
            row(chunk.inner_rows, share.place * chunk.all_expert_rows + at + i, width));
      }
    });
    mlp_.add_up(weights.experts[static_cast<std::size_t>(tile.expert)], begin, tile.rows);
  });
  run();
}

void CpuLayers::shared_down(CpuChunk& chunk, const CpuLayer& weights,
                            std::span<const RowBlock> blocks) {
  const ExpertShare& share = options_.part.expert_share;
  const int width = shape_.moe_intermediate / share.members;
  const int out_width = shape_.hidden / share.members;
  const std::int64_t row_bytes = shape_.hidden * element_bytes_;
  const auto part_bytes = static_cast<std::size_t>(width * element_bytes_);
  const std::int64_t at_once = gemm_->rows_at_once();
  const auto run = [&] {
    gemm_->run(mlp_.down);
    mlp_.clear(at_once);
  };
  // The members' columns of one row, beside each other.
  const auto join = [&](std::int64_t from) {
    char* to =
        row(work_.inner, static_cast<std::int64_t>(mlp_.inner.size()), shape_.moe_intermediate);
    for (int m = 0; m < share.members; ++m) {
      std::memcpy(to + static_cast<std::size_t>(m) * part_bytes,
                  row(chunk.inner_rows, m * chunk.all_expert_rows + from, width), part_bytes);
    }
    mlp_.inner.push_back(to);
    mlp_.out.push_back(row(chunk.down_send, from, out_width));
  };
  mlp_.clear(at_once);
  for_tiles(blocks, [&](const ExpertTile& tile) {
    if (static_cast<std::int64_t>(mlp_.inner.size()) + tile.rows > at_once) run();
    const std::size_t begin = mlp_.inner.size();
    for_pieces(blocks, tile, [&](const RowBlock& block, int first, int count) {
      const std::int64_t offset =
          static_cast<const char*>(block.in) - static_cast<const char*>(chunk.expert_rows);
      for (int i = 0; i < count; ++i) join(offset / row_bytes + first + i);
    });
    mlp_.add_down(weights.experts[static_cast<std::size_t>(tile.expert)], begin, tile.rows,
                  Finish::rounded);
  });
  run();
}

void CpuLayers::write_rows(CpuChunk& chunk, std::span<const RowBlock> blocks) {
  const ExpertShare& share = options_.part.expert_share;
  const int width = shape_.hidden / share.members;
  const auto bytes = static_cast<std::size_t>(width * element_bytes_);
  std::int64_t own_rows = 0;
  for (const RowBlock& block : blocks) own_rows += block.num_rows;
  std::int64_t at = 0;
  for (const RowBlock& block : blocks) {
    for (int i = 0; i < block.num_rows; ++i, ++at) {
      for (int m = 0; m < share.members; ++m) {
        const char* from = m == share.place
                               ? row(chunk.down_send, chunk.first_expert_row + at, width)
                               : row(chunk.down_recv, m * own_rows + at, width);
        std::memcpy(row(block.out, i * std::int64_t{share.members} + m, width), from, bytes);
      }
    }
  }
}

}  // namespace atl::compute
