#pragma once
// Into how many chunks a pass is cut, and where.

#include <cstdint>
#include <span>

#include "app/plan/rank_load.hpp"

namespace atl {

/// Limits of one rank's part of a pass.
struct ChunkLimits {
  int max_pass_tokens = 2048;
  int min_chunk_tokens = 32;  ///< fewer tokens than this are not cut further
  int max_chunks = 1;
};

/// Tokens of the busiest rank in the next pass; 0 when no rank has one to process.
std::int64_t most_pass_rows(std::span<const RankLoad> loads, const ChunkLimits& limits);

/// The number of chunks, equal on all ranks: as many as the busiest rank can fill with
/// min_chunk_tokens each, at least 1.
int chunk_count(std::int64_t most_rows, const ChunkLimits& limits);

/// Chunk c of C holds rows [chunk_end(T, c - 1, C), chunk_end(T, c, C)) of a rank's T rows.
constexpr std::int64_t chunk_end(std::int64_t rows, int chunk, int num_chunks) {
  return rows * (chunk + 1) / num_chunks;
}

}  // namespace atl
