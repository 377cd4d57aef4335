// The CPU backend's experts: gated or plain MLPs over tiles of rows.

#include <algorithm>
#include <cstring>

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

/// Calls visit(block, byte in it, byte in the tile, bytes) for each piece of a tile.
template <class Visit>
void for_pieces(std::span<const RowBlock> blocks, const Tile& tile, std::int64_t row_bytes,
                const Visit& visit) {
  int begin = tile.begin;
  int done = 0;
  for (std::size_t b = tile.block; done < tile.rows; ++b, begin = 0) {
    const int count = std::min(tile.rows - done, blocks[b].num_rows - begin);
    if (count > 0) {
      visit(blocks[b], begin * row_bytes, done * row_bytes,
            static_cast<std::size_t>(count * row_bytes));
    }
    done += count;
  }
}

void gather(std::span<const RowBlock> blocks, const Tile& tile, std::int64_t row_bytes, void* to) {
  for_pieces(blocks, tile, row_bytes,
             [&](const RowBlock& block, std::int64_t from, std::int64_t at, std::size_t bytes) {
               std::memcpy(static_cast<char*>(to) + at, static_cast<const char*>(block.in) + from,
                           bytes);
             });
}

void scatter(std::span<const RowBlock> blocks, const Tile& tile, std::int64_t row_bytes,
             const void* from) {
  for_pieces(blocks, tile, row_bytes,
             [&](const RowBlock& block, std::int64_t to, std::int64_t at, std::size_t bytes) {
               std::memcpy(static_cast<char*>(block.out) + to, static_cast<const char*>(from) + at,
                           bytes);
             });
}

}  // namespace

void CpuLayers::mlp_up(const CpuMlp& mlp, int width, const void* in, int rows, void* inner) {
  const bool swiglu = shape_.activation == Activation::swiglu;
  if (swiglu) gemm_.run(mlp.up, in, rows, inner, Gemm::Output::activation);
  gemm_.run(swiglu ? mlp.gate : mlp.up, in, rows, work_.inner_float.data(), Gemm::Output::float32);
  parallel_ranges(options_.num_threads, rows, grain_rows(width),
                  [&](std::int64_t begin, std::int64_t end, int) {
                    const float* from = work_.inner_float.as<float>() + begin * width;
                    char* to = row(inner, begin, width);
                    const std::int64_t count = (end - begin) * width;
                    if (swiglu) {
                      kernels_.swiglu(from, to, to, count);
                    } else {
                      kernels_.gelu(from, to, count);
                    }
                  });
}

void CpuLayers::mlp(CpuChunk& chunk, int layer) {
  const CpuLayer& weights = layers_[static_cast<std::size_t>(layer)];
  for (std::int64_t t = 0; t < chunk.num_tokens(); t += tile_rows) {
    const int rows = static_cast<int>(std::min<std::int64_t>(tile_rows, chunk.num_tokens() - t));
    norm(row(chunk.memory.x, t, shape_.hidden), weights.ffn_norm, work_.in.data(), rows);
    mlp_up(weights.dense, shape_.intermediate, work_.in.data(), rows, work_.inner.data());
    gemm_.run(weights.dense.down, work_.inner.data(), rows, work_.out.data(),
              Gemm::Output::activation);
    add(row(chunk.memory.x, t, shape_.hidden), work_.out.data(), rows);
  }
}

void CpuLayers::experts(CpuChunk& chunk, int layer, std::span<const RowBlock> blocks,
                        ExpertPart part) {
  const CpuLayer& weights = layers_[static_cast<std::size_t>(layer)];
  const int width = shape_.moe_intermediate;
  const std::int64_t row_bytes = shape_.hidden * element_bytes_;
  const bool all = part == ExpertPart::all;
  if (part == ExpertPart::up) {
    std::int64_t rows = tile_rows;  // the last tile is written whole
    for (const RowBlock& block : blocks) rows += block.num_rows;
    chunk.reserve_inner(rows * width * element_bytes_);
  }
  std::int64_t first = 0;  // row of chunk.inner
  for_tiles(blocks, [&](const Tile& tile) {
    const CpuMlp& expert = weights.experts[static_cast<std::size_t>(tile.expert)];
    void* const inner = all ? work_.inner.data() : row(chunk.inner, first, width);
    if (all || part == ExpertPart::up) {
      gather(blocks, tile, row_bytes, work_.in.data());
      mlp_up(expert, width, work_.in.data(), tile.rows, inner);
    }
    if (all || part == ExpertPart::down) {
      gemm_.run(expert.down, inner, tile.rows, work_.out.data(), Gemm::Output::activation);
      scatter(blocks, tile, row_bytes, work_.out.data());
    }
    first += tile.rows;
  });
}

}  // namespace atl::compute
