#include "app/plan/balance_policy.hpp"

#include <gtest/gtest.h>

#include <vector>

namespace atl {
namespace {

constexpr int num_experts = 4, num_ranks = 6;
constexpr std::int64_t ten_passes[] = {10, 10, 10};

/// A dense layer, then two with experts, each with a kind of its own.
Placement placed() {
  Placement placement;
  placement.kind_of_layer = {-1, 0, 0};
  const std::vector<std::vector<int>> ranks = {{0, 4}, {1, 5}, {2}, {3}};
  placement.kinds.emplace_back(ranks, one_node(num_ranks));
  placement.separate_layers();
  return placement;
}

/// Of ten passes; the second layer with experts is even.
std::vector<std::int64_t> hot_rows(std::int64_t hot) {
  return {0, 0, 0, 0, 100, 100, hot, 100, 200, 200, 100, 100};
}

BalanceCosts costs() {
  BalanceCosts costs;
  costs.seconds_of_row = 1e-5;
  costs.expert_bytes = 1000000;
  return costs;
}

TEST(BalancePolicy, AHotExpertGetsThePlacesOfCoolOnes) {
  std::int64_t refused = 0;
  const auto changes = changes_worth(hot_rows(3000), ten_passes, placed(), {}, costs(), refused);
  ASSERT_EQ(changes.size(), 1U);
  EXPECT_EQ(refused, 0);
  EXPECT_EQ(changes[0].layer, 1);
  EXPECT_EQ(changes[0].moves.size(), 2U);
  for (const ExpertMove& move : changes[0].moves) {
    EXPECT_EQ(move.expert, 2);
    EXPECT_EQ(move.from, 2);
  }
  EXPECT_NEAR(changes[0].rows_saved, (3000 - 1000) / 10.0, 1e-9);
  // And with what came of it, nothing is left to do.
  Placement next = placed();
  next.change(1, LayerPlacement(changes[0].experts_of, num_experts, one_node(num_ranks)));
  EXPECT_EQ(next.of(1).ranks_of_expert()[2].size(), 3U);
  EXPECT_TRUE(changes_worth(hot_rows(3000), ten_passes, next, {}, costs(), refused).empty());
}

TEST(BalancePolicy, WhatWouldNotPayIsLeft) {
  std::int64_t refused = 0;
  BalanceOptions options;
  BalanceCosts dear = costs();
  dear.seconds_of_byte = 1;
  EXPECT_TRUE(changes_worth(hot_rows(3000), ten_passes, placed(), options, dear, refused).empty());
  EXPECT_EQ(refused, 1);
  options.pays_in = std::int64_t{1} << 40;
  EXPECT_EQ(changes_worth(hot_rows(3000), ten_passes, placed(), options, dear, refused).size(), 1U);
}

TEST(BalancePolicy, EvenLoadsAndFewRowsAreLeft) {
  std::int64_t refused = 0;
  EXPECT_TRUE(
      changes_worth(hot_rows(100), ten_passes, placed(), {.above = 2}, costs(), refused).empty());
  const std::vector<std::int64_t> few = {0, 0, 0, 0, 0, 0, 60, 0, 0, 0, 0, 0};
  EXPECT_TRUE(changes_worth(few, ten_passes, placed(), {}, costs(), refused).empty());
  EXPECT_EQ(refused, 0);
}

TEST(BalancePolicy, BytesAreThoseOfTheBusiestRank) {
  const std::vector<ExpertMove> moves = {{2, 0, 2, 0}, {2, 1, 2, 0}, {3, 4, 1, 0}};
  EXPECT_EQ(busiest_bytes(moves, num_ranks, 10), 20);
  EXPECT_EQ(busiest_bytes({}, num_ranks, 10), 0);
}

TEST(Placement, ExpertsTakeOthersPlaces) {
  const Layout layout = make_layout({0, 0, 1, 1});
  const LayerPlacement changed({{3, 1}, {0}, {2}, {3}}, 4, layout);
  EXPECT_EQ(changed.ranks_of_expert(), (std::vector<std::vector<int>>{{1}, {0}, {2}, {0, 3}}));
  EXPECT_EQ(changed.place_of(3, 0), 0);
  EXPECT_EQ(changed.place_of(1, 0), 1);
  EXPECT_EQ(changed.place_of(3, 3), 4);
  const auto seen = changed.places_seen_by(3, layout);
  EXPECT_EQ(seen.first_of_expert, (std::vector<std::int32_t>{0, 1, 2, 3, 5}));
  EXPECT_EQ(seen.replicas[3].place, 0);
  EXPECT_EQ(seen.replicas[4].place, 4);
  EXPECT_EQ(seen.replicas[4].distance, compute::Distance::own_rank);
}

}  // namespace
}  // namespace atl
