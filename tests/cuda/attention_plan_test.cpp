// Attention's tiles: every row and every key exactly once, whatever the segments. Needs no device.

#include "compute/cuda/plan/attention_plan.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>

namespace atl::testing {
namespace {

namespace cuda = compute::cuda;
using compute::Segment;

ModelShape shape_of(int num_heads, int num_kv_heads, int head_dim) {
  ModelShape shape;
  shape.num_heads = num_heads;
  shape.num_kv_heads = num_kv_heads;
  shape.head_dim = head_dim;
  shape.max_positions = 10000;
  return shape;
}

/// For each row, which keys its tiles cover, in the order of its splits; checks the tiles' own
/// rules.
void expect_complete(const cuda::AttendedHeads& shape, const std::vector<Segment>& segments,
                     const cuda::AttentionPlan& plan, std::int64_t workspace_rows) {
  ASSERT_EQ(plan.tiles.size(), static_cast<std::size_t>(plan.num_wide + plan.num_narrow));
  std::map<std::int32_t, std::map<int, int>> keys_of_row;  // row -> first key -> number
  std::map<std::int32_t, std::int32_t> row_of_partial;
  for (std::size_t i = 0; i < plan.tiles.size(); ++i) {
    const cuda::AttentionTile& tile = plan.tiles[i];
    const bool narrow = i >= static_cast<std::size_t>(plan.num_wide);
    const int rows = cuda::tile_rows(shape.head_dim, narrow, plan.by_groups);
    EXPECT_LE(tile.num_rows * cuda::heads_per_tile(shape, rows), rows);
    const int low = shape.window > 0 ? std::max(0, tile.first_position + 1 - shape.window) : 0;
    EXPECT_TRUE(tile.first_key % cuda::split_keys == 0 ||
                tile.first_key == low / cuda::key_block * cuda::key_block);
    const Segment& segment = segments[static_cast<std::size_t>(tile.sequence)];
    EXPECT_EQ(tile.first_position - segment.first_position, tile.first_row - segment.first_row);
    if (i > 0 && i != static_cast<std::size_t>(plan.num_wide)) {
      EXPECT_LE(tile.num_keys, plan.tiles[i - 1].num_keys) << "longest first";
    }
    for (int r = 0; r < tile.num_rows; ++r) {
      EXPECT_TRUE(keys_of_row[tile.first_row + r].emplace(tile.first_key, tile.num_keys).second);
      if (tile.partial < 0) continue;
      EXPECT_EQ(tile.first_key / cuda::split_keys,
                (tile.first_key + tile.num_keys - 1) / cuda::split_keys);
      EXPECT_LT(tile.partial + r, workspace_rows);
      EXPECT_TRUE(row_of_partial.emplace(tile.partial + r, tile.first_row + r).second);
    }
  }
  std::map<std::int32_t, int> merged;
  for (const cuda::AttentionMerge& merge : plan.merges) {
    EXPECT_EQ(merge.num_partials, static_cast<int>(keys_of_row[merge.row].size()));
    for (int i = 0; i < merge.num_partials; ++i) {
      EXPECT_EQ(row_of_partial.at(merge.first_partial + i * merge.stride), merge.row);
    }
    EXPECT_EQ(merged[merge.row]++, 0);
  }
  std::size_t num_rows = 0;
  for (const Segment& segment : segments) {
    for (int r = 0; r < segment.num_rows; ++r, ++num_rows) {
      const int position = segment.first_position + r;
      const auto& keys = keys_of_row[segment.first_row + r];
      int next = keys.begin()->first;
      EXPECT_LE(next, shape.window > 0 ? std::max(0, position + 1 - shape.window) : 0);
      for (const auto& [first, count] : keys) {
        EXPECT_EQ(first, next);
        next = first + count;
      }
      EXPECT_GT(next, position);
      const bool split = keys_of_row[segment.first_row + r].size() > 1;
      EXPECT_EQ(merged.count(segment.first_row + r), split ? 1U : 0U);
    }
  }
  EXPECT_EQ(keys_of_row.size(), num_rows);
}

std::vector<Segment> segments_of(const std::vector<std::pair<int, int>>& first_and_count) {
  std::vector<Segment> segments;
  int row = 0;
  for (const auto& [first, count] : first_and_count) {
    segments.push_back({row, count, first, nullptr});
    row += count;
  }
  return segments;
}

TEST(AttentionPlan, CoversEveryRowAndKeyOnce) {
  const auto segments = segments_of(
      {{0, 1}, {0, 700}, {9999, 1}, {511, 1}, {512, 1}, {500, 40}, {3, 16}, {4000, 17}, {0, 0}});
  for (const auto& [heads, kv_heads, head_dim] :
       {std::tuple{32, 32, 128}, {6, 2, 32}, {16, 16, 512}, {40, 1, 256}, {300, 1, 64}}) {
    const ModelShape shape = shape_of(heads, kv_heads, head_dim);
    for (const int multiprocessors : {0, 132, 1 << 20}) {
      for (const std::int64_t workspace_rows : {0, 30, 100000}) {
        for (const bool by_groups : {false, true}) {
          cuda::AttentionPlan plan;
          plan.by_groups = by_groups;
          plan_attention(shape, segments, multiprocessors, workspace_rows, plan);
          expect_complete(shape, segments, plan, workspace_rows);
          if (multiprocessors == 0 || workspace_rows == 0) {
            EXPECT_TRUE(plan.merges.empty());
          }
          if (multiprocessors == 1 << 20 && workspace_rows == 100000) {
            EXPECT_FALSE(plan.merges.empty());
          }
        }
      }
    }
  }
}

TEST(AttentionPlan, WindowsBeginLater) {
  const auto segments = segments_of({{9999, 1}, {0, 700}, {511, 1}, {500, 40}, {4000, 170}});
  for (const int window : {1, 64, 128, 1000}) {
    cuda::AttendedHeads heads = shape_of(8, 2, 64);
    heads.window = window;
    for (const int multiprocessors : {0, 1 << 20}) {
      cuda::AttentionPlan plan;
      plan_attention(heads, segments, multiprocessors, 100000, plan);
      expect_complete(heads, segments, plan, 100000);
      for (const cuda::AttentionTile& tile : plan.tiles) {
        EXPECT_LE(tile.num_keys, window + tile.num_rows + cuda::key_block);
      }
      EXPECT_EQ(plan.workspace_rows() > 0, multiprocessors > 0);
    }
  }
}

TEST(AttentionPlan, ForgetsTheLastChunk) {
  const ModelShape shape = shape_of(8, 8, 64);
  cuda::AttentionPlan plan;
  plan_attention(shape, segments_of({{900, 1}, {0, 300}}), 132, 1000, plan);
  EXPECT_GT(plan.num_wide, 0);
  EXPECT_FALSE(plan.merges.empty());
  plan_attention(shape, {}, 132, 1000, plan);
  EXPECT_EQ(plan.num_wide + plan.num_narrow, 0);
  EXPECT_TRUE(plan.tiles.empty() && plan.merges.empty());
}

TEST(AttentionPlan, ListsFitTheirBounds) {
  for (const int tokens : {1, 64, 4096}) {
    const ModelShape shape = shape_of(32, 32, 128);
    std::vector<std::pair<int, int>> rows(static_cast<std::size_t>(tokens), {9999, 1});
    cuda::AttentionPlan plan;
    const std::int64_t workspace = cuda::attention_workspace_rows(shape, tokens);
    plan_attention(shape, segments_of(rows), 1 << 20, workspace, plan);
    EXPECT_LE(static_cast<std::int64_t>(plan.tiles.size()),
              cuda::max_attention_tiles(shape, tokens));
    EXPECT_LE(workspace, std::int64_t{20} * tokens);
    EXPECT_LE(cuda::attention_workspace_floats(shape, tokens) * 4, std::int64_t{64} << 20);
  }
}

}  // namespace
}  // namespace atl::testing
