#pragma once
// The rows of experts' blocks, by the tile.

#include <algorithm>
#include <cstddef>
#include <span>

#include "compute/backend.hpp"
#include "compute/cpu/gemm.hpp"

namespace atl::compute {

/// Rows of one expert, at most tile_rows, from as many blocks as that takes.
struct ExpertTile {
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
    ExpertTile tile{blocks[block].local_expert, 0, block, taken};
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
void for_pieces(std::span<const RowBlock> blocks, const ExpertTile& tile, const Visit& visit) {
  int begin = tile.begin;
  int done = 0;
  for (std::size_t b = tile.block; done < tile.rows; ++b, begin = 0) {
    const int count = std::min(tile.rows - done, blocks[b].num_rows - begin);
    if (count > 0) visit(blocks[b], begin, count);
    done += count;
  }
}

}  // namespace atl::compute
