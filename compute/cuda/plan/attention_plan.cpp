#include "compute/cuda/plan/attention_plan.hpp"

#include <algorithm>

namespace atl::compute::cuda {

namespace {

constexpr std::int64_t workspace_bytes = std::int64_t{64} << 20;
/// Blocks per multiprocessor below which tiles are split along their keys.
constexpr int enough_blocks = 2;

std::int64_t row_floats(const AttendedHeads& heads) {
  return heads.num_heads * partial_floats_per_head(heads.value_dim);
}

int divide_up(int a, int b) {
  return (a + b - 1) / b;
}

/// Tokens of a tile whose matrices have `rows` rows.
int tokens_of(const AttendedHeads& heads, int rows) {
  return rows / heads_per_tile(heads, rows);
}

/// Blocks that compute one tile.
std::int64_t blocks_of(const AttendedHeads& heads, int rows) {
  const int group = heads.num_heads / heads.num_kv_heads;
  return std::int64_t{heads.num_kv_heads} * divide_up(group, heads_per_tile(heads, rows));
}

/// Appends the tiles of the segments that are narrow, or of those that are not.
void cut(const AttendedHeads& heads, std::span<const Segment> segments, bool narrow, bool by_groups,
         std::vector<AttentionTile>& tiles) {
  const int tokens = tokens_of(heads, tile_rows(heads.head_dim, narrow, by_groups));
  const int most_narrow = tokens_of(heads, tile_rows(heads.head_dim, true, by_groups));
  for (std::size_t s = 0; s < segments.size(); ++s) {
    const Segment& segment = segments[s];
    if ((segment.num_rows <= most_narrow) != narrow) continue;
    for (int first = 0; first < segment.num_rows; first += tokens) {
      AttentionTile tile;
      tile.first_row = segment.first_row + first;
      tile.num_rows = std::min(tokens, segment.num_rows - first);
      tile.sequence = static_cast<std::int32_t>(s);
      tile.first_position = segment.first_position + first;
      const int low = tile.first_position + 1 - heads.window;
      if (heads.window > 0 && low > 0) tile.first_key = low / key_block * key_block;
      tile.num_keys = tile.first_position + tile.num_rows - tile.first_key;
      tiles.push_back(tile);
    }
  }
}

/// Replaces tiles [begin, end) by one tile per split where the workspace lasts; returns their
/// number.
int split(AttentionPlan& plan, std::size_t begin, std::size_t end, std::int64_t workspace_rows,
          std::int64_t& used) {
  std::vector<AttentionTile>& tiles = plan.tiles;
  int added = 0;
  for (std::size_t i = begin; i < end; ++i) {
    const AttentionTile whole = tiles[i];
    const int end_key = whole.first_key + whole.num_keys;
    const int first_split = whole.first_key / split_keys;
    const int splits = divide_up(end_key, split_keys) - first_split;
    const std::int64_t rows = std::int64_t{splits} * whole.num_rows;
    if (splits == 1 || used + rows > workspace_rows) continue;
    for (int s = 0; s < splits; ++s) {
      AttentionTile part = whole;
      part.first_key = std::max(whole.first_key, (first_split + s) * split_keys);
      part.num_keys = std::min((first_split + s + 1) * split_keys, end_key) - part.first_key;
      part.partial = static_cast<std::int32_t>(used) + s * whole.num_rows;
      if (s == 0) {
        tiles[i] = part;
      } else {
        tiles.push_back(part);
        ++added;
      }
    }
    for (int r = 0; r < whole.num_rows; ++r) {
      plan.merges.push_back(
          {whole.first_row + r, static_cast<std::int32_t>(used) + r, splits, whole.num_rows});
    }
    used += rows;
  }
  return added;
}

}  // namespace

AttendedHeads attended_heads(const BackendOptions& options, int layer) {
  AttendedHeads heads(options.shape);
  const OwnHeads own = own_heads(options.shape, options.part.attention, layer);
  heads.num_kv_heads = own.num_kv_heads();
  heads.num_heads = own.num_kv_heads() * own.most_in_group;
  heads.window = options.shape.attention(layer).window;
  heads.sinks = options.shape.attention(layer).sinks;
  return heads;
}

bool wgmma_attends(const AttendedHeads& heads, DType dtype) {
  constexpr int wide = 8;  // elements of 16 bytes, in which rows are copied
  return dtype != DType::float32 && heads.head_dim % wide == 0 && heads.head_dim <= max_head_dim &&
         heads.value_dim == heads.head_dim && heads.window == 0 && !heads.sinks;
}

std::int64_t AttentionPlan::workspace_rows() const {
  std::int64_t rows = 0;
  for (const AttentionMerge& merge : merges) rows += merge.num_partials;
  return rows;
}

std::int64_t attention_workspace_rows(const AttendedHeads& heads, int max_chunk_tokens) {
  const int splits = divide_up(std::max(heads.max_positions, 1), split_keys);
  const std::int64_t needed = splits == 1 ? 0 : std::int64_t{splits} * max_chunk_tokens;
  const std::int64_t affordable =
      workspace_bytes / (static_cast<std::int64_t>(sizeof(float)) * row_floats(heads));
  return std::min(needed, affordable);
}

std::int64_t attention_workspace_floats(const AttendedHeads& heads, int max_chunk_tokens) {
  return attention_workspace_rows(heads, max_chunk_tokens) * row_floats(heads);
}

std::int64_t attention_totals_floats(const AttendedHeads& heads) {
  constexpr int widest_held = 256;
  constexpr std::int64_t rows = 64;
  return heads.head_dim > widest_held ? most_blocks_with_totals * rows * max_head_dim : 0;
}

void plan_attention(const AttendedHeads& heads, std::span<const Segment> segments,
                    int multiprocessors, std::int64_t workspace_rows, AttentionPlan& plan) {
  plan.tiles.clear();
  plan.merges.clear();
  const auto longest_first = [](const AttentionTile& a, const AttentionTile& b) {
    return a.num_keys > b.num_keys;
  };
  const std::int64_t enough = std::int64_t{enough_blocks} * multiprocessors;
  std::int64_t used = 0;
  for (const bool narrow : {false, true}) {
    const std::size_t begin = plan.tiles.size();
    cut(heads, segments, narrow, plan.by_groups, plan.tiles);
    const auto count = static_cast<int>(plan.tiles.size() - begin);
    int& total = narrow ? plan.num_narrow : plan.num_wide;
    total = count;
    const int rows = tile_rows(heads.head_dim, narrow, plan.by_groups);
    if (count * blocks_of(heads, rows) < enough) {
      total += split(plan, begin, plan.tiles.size(), workspace_rows, used);
    }
    std::stable_sort(plan.tiles.begin() + static_cast<std::ptrdiff_t>(begin), plan.tiles.end(),
                     longest_first);
  }
}

std::int64_t max_attention_tiles(const AttendedHeads& heads, int max_chunk_tokens) {
  return max_chunk_tokens + attention_workspace_rows(heads, max_chunk_tokens);
}

}  // namespace atl::compute::cuda
