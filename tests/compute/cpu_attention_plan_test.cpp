// How attention is cut into tasks: every split of every row once, evenly, in memory of its own.

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <utility>

#include "compute/cpu/attention_plan.hpp"
#include "compute/cpu/kernels.hpp"
#include "tests/tiny_model.hpp"

namespace atl::testing {
namespace {

using compute::AttendPiece;
using compute::AttendPlan;
using compute::AttendTile;
using compute::Segment;

compute::AttendLimits limits_for(int threads, int max_positions, int chunk_tokens = 256) {
  compute::BackendOptions options = tiny_options();
  options.num_threads = threads;
  options.shape.max_positions = max_positions;
  options.max_chunk_tokens = chunk_tokens;
  return compute::attend_limits_of(options);
}

/// Segments of (rows, first position), one after the other.
std::vector<Segment> segments_of(const std::vector<std::pair<int, int>>& sizes) {
  std::vector<Segment> segments;
  int row = 0;
  for (const auto& [rows, position] : sizes) {
    segments.push_back({row, rows, position, nullptr});
    row += rows;
  }
  return segments;
}

std::int64_t keys_of(const AttendPlan& plan, const AttendPiece& piece) {
  const AttendTile& tile = plan.tiles()[static_cast<std::size_t>(piece.tile)];
  return std::min(piece.end_split * compute::split_tokens, tile.end_position()) -
         piece.first_split * compute::split_tokens;
}

void expect_whole(AttendPlan& plan, const std::vector<Segment>& segments,
                  const compute::AttendLimits& limits) {
  std::map<std::pair<const Segment*, int>, int> rows;
  for (const AttendTile& tile : plan.tiles()) {
    for (int r = 0; r < tile.num_rows; ++r) ++rows[{tile.segment, tile.first_row + r}];
  }
  std::size_t expected = 0;
  for (const Segment& segment : segments) expected += static_cast<std::size_t>(segment.num_rows);
  EXPECT_EQ(rows.size(), expected);
  for (const auto& [row, times] : rows) EXPECT_EQ(times, 1) << row.second;

  std::map<std::pair<int, int>, int> splits;
  std::vector<int> pieces(plan.tiles().size());
  for (const AttendPiece& piece : plan.pieces()) {
    ++pieces[static_cast<std::size_t>(piece.tile)];
    for (int s = piece.first_split; s < piece.end_split; ++s) ++splits[{piece.tile, s}];
  }
  std::int64_t used = 0;
  int counters = 0;
  for (std::size_t t = 0; t < plan.tiles().size(); ++t) {
    const AttendTile& tile = plan.tiles()[t];
    EXPECT_EQ(pieces[t], tile.pieces);
    for (int s = 0; s < tile.num_splits(); ++s) EXPECT_EQ((splits[{static_cast<int>(t), s}]), 1);
    if (tile.pieces == 1) continue;
    EXPECT_EQ(tile.partial, used);
    EXPECT_EQ(tile.counter, counters);
    EXPECT_EQ(plan.counters()[static_cast<std::size_t>(counters)], tile.pieces);
    const int group = limits.layout.num_heads / limits.layout.num_kv_heads;
    used += limits.layout.num_kv_heads * tile.num_splits() *
            compute::attend_state_floats(limits.layout, tile.num_rows * group);
    counters += limits.layout.num_kv_heads;
  }
  EXPECT_LE(used, limits.partial_floats);
  EXPECT_EQ(plan.counters().size(), static_cast<std::size_t>(counters));
}

TEST(AttentionPlan, CoversEverySplitOfEveryRowOnce) {
  for (const int threads : {1, 2, 8, 64}) {
    const auto limits = limits_for(threads, 20000);
    AttendPlan plan;
    for (const auto& sizes :
         std::vector<std::vector<std::pair<int, int>>>{{},
                                                       {{1, 0}},
                                                       {{1, 511}, {1, 512}},
                                                       {{1, 9000}},
                                                       {{200, 0}, {1, 12000}, {56, 500}},
                                                       {{1, 19999}, {1, 100}, {1, 100}, {1, 100}},
                                                       {{256, 3000}}}) {
      const auto segments = segments_of(sizes);
      plan.cut(segments, limits);
      expect_whole(plan, segments, limits);
      EXPECT_TRUE(std::is_sorted(plan.pieces().begin(), plan.pieces().end(),
                                 [&](const AttendPiece& a, const AttendPiece& b) {
                                   return keys_of(plan, a) > keys_of(plan, b);
                                 }) ||
                  segments.size() > 1 || sizes[0].first > 1);
    }
  }
}

TEST(AttentionPlan, OneLongContextKeepsAllThreadsBusy) {
  for (const int threads : {2, 8, 16}) {
    const auto limits = limits_for(threads, 40000);
    AttendPlan plan;
    for (const auto& sizes : std::vector<std::vector<std::pair<int, int>>>{
             {{1, 30000}}, {{1, 30000}, {1, 700}, {1, 700}}}) {
      const auto segments = segments_of(sizes);
      plan.cut(segments, limits);
      std::int64_t all = 0;
      std::int64_t longest = 0;
      for (const AttendPiece& piece : plan.pieces()) {
        all += limits.layout.num_kv_heads * keys_of(plan, piece);
        longest = std::max(longest, keys_of(plan, piece));
      }
      EXPECT_LE(longest, all / threads / 4 + compute::split_tokens);
    }
  }
}

TEST(AttentionPlan, CutsNothingWithoutNeedOrRoom) {
  AttendPlan plan;
  const std::vector<std::pair<int, int>> many(100, {1, 3000});
  for (const auto& [sizes, limits] :
       {std::pair{std::vector<std::pair<int, int>>{{1, 3000}}, limits_for(1, 4000)},
        {many, limits_for(8, 4000)},
        {{{1, 400}}, limits_for(8, 512)}}) {
    const auto segments = segments_of(sizes);
    plan.cut(segments, limits);
    EXPECT_EQ(plan.pieces().size(), segments.size());
  }
  EXPECT_EQ(limits_for(1, 100000).partial_floats, 0);
  EXPECT_EQ(limits_for(8, 512).partial_floats, 0);
  // Two long ones of which one has room.
  auto limits = limits_for(8, 20000);
  limits.partial_floats /= 8;
  const auto segments = segments_of({{1, 19000}, {1, 19000}});
  plan.cut(segments, limits);
  EXPECT_GT(plan.tiles()[0].pieces, 1);
  expect_whole(plan, segments, limits);
}

}  // namespace
}  // namespace atl::testing
