#include "app/plan/pass_choice.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>

#include "app/plan/output_choice.hpp"

namespace atl {
namespace {

/// Four nodes of four ranks, one expert each, top-4; links between nodes are slow.
PassFacts slow_links() {
  PassFacts facts;
  facts.routes = {Route::flat, Route::nodes};
  facts.chunk_counts = {1, 2, 4, 8};
  facts.min_chunk_tokens = 32;
  facts.most_chunk_tokens = 1025;
  facts.num_ranks = 16;
  facts.num_nodes = 4;
  facts.ranks_of_node = 4;
  facts.num_experts = 16;
  facts.top_k = 4;
  facts.moe_layers = 16;
  facts.row_bytes = 8192;
  facts.across_row_bytes = 8192 + 32;
  facts.inside = {1e-6, 2e10};
  facts.between = {1e-5, 1e9};
  facts.guessed_s_per_row = 1e-4;
  return facts;
}

/// Runs passes of one size whose seconds `takes` says, and counts how often each way was taken.
std::map<std::pair<Route, int>, int> run(PassChoices& choices, const PassSize& size, int passes,
                                         const std::function<double(PassWay)>& takes,
                                         double compute = 0.05) {
  std::map<std::pair<Route, int>, int> taken;
  PassCost cost;
  for (int i = 0; i < passes; ++i) {
    const PassWay way = choices.next(size, cost);
    ++taken[{way.route, way.chunks}];
    cost.seconds = takes(way);
    cost.compute_seconds = compute;
  }
  return taken;
}

std::pair<Route, int> most_taken(const std::map<std::pair<Route, int>, int>& taken) {
  return std::max_element(taken.begin(), taken.end(),
                          [](const auto& a, const auto& b) { return a.second < b.second; })
      ->first;
}

TEST(PassChoice, LinksBetweenNodesDecide) {
  const PassSize prefill{Phase::prefill, 2048};
  const PassChoices slow(slow_links());
  EXPECT_LT(slow.estimate(prefill, {Route::nodes, 4}), slow.estimate(prefill, {Route::flat, 4}));
  EXPECT_LT(slow.estimate(prefill, {Route::nodes, 8}), slow.estimate(prefill, {Route::nodes, 2}));
  PassFacts fast = slow_links();
  fast.between = {1e-6, 1e12};  // more than inside: the second hop costs, and saves nothing
  const PassChoices other(fast);
  EXPECT_LT(other.estimate(prefill, {Route::flat, 4}), other.estimate(prefill, {Route::nodes, 4}));
}

TEST(PassChoice, FewTokensAreNotCut) {
  PassChoices choices(slow_links());
  const auto taken = run(choices, {Phase::decode, 20}, 40, [](PassWay) { return 0.01; });
  for (const auto& [way, count] : taken) EXPECT_EQ(way.second, 1);
}

TEST(PassChoice, ChunksHaveRoomForTheirTokens) {
  PassChoices choices(slow_links());
  for (const std::int64_t rows : {1, 100, 1025, 1026, 2048}) {
    const auto taken = run(choices, {Phase::prefill, rows}, 20, [](PassWay) { return 0.01; });
    for (const auto& [way, count] : taken) EXPECT_LE((rows + way.second - 1) / way.second, 1025);
  }
}

/// Passes of nearly equal size are decided together, and each must still fit.
TEST(PassChoice, WhatIsChosenForAnotherSizeFits) {
  for (const std::vector<int>& counts :
       {std::vector{1, 2}, std::vector{1, 2, 4, 8}, std::vector{8}}) {
    PassFacts facts = slow_links();
    facts.routes = {Route::flat};
    facts.chunk_counts = counts;
    if (counts.size() == 1) facts.most_chunk_tokens = 256;
    PassChoices choices(facts);
    PassCost cost;
    for (int i = 0; i < 400; ++i) {
      const PassSize size{Phase::prefill, i % 2 == 0 ? 1024 - i % 90 : 1 + i * 211 % 2048};
      const PassWay way = choices.next(size, cost);
      ASSERT_LE((size.rows + way.chunks - 1) / way.chunks, facts.most_chunk_tokens) << size.rows;
      if (way.chunks > counts.front() || counts.size() == 1) {
        ASSERT_TRUE(way.chunks == 1 || size.rows / way.chunks >= facts.min_chunk_tokens)
            << size.rows;
      }
      cost.seconds = 0.001 * static_cast<double>(way.chunks);  // few chunks seem good
      cost.compute_seconds = 0.0005;
    }
  }
}

TEST(PassChoice, WhatPassesTookHasTheLastWord) {
  PassFacts facts = slow_links();
  facts.between = {1e-5, 4e9};  // estimates are close, so that both routes are tried
  for (const Route faster : {Route::flat, Route::nodes}) {
    PassChoices choices(facts);
    const auto taken = run(choices, {Phase::prefill, 2000}, 60,
                           [&](PassWay way) { return way.route == faster ? 0.1 : 0.2; });
    EXPECT_EQ(most_taken(taken).first, faster);
    int other = 0;
    for (const auto& [way, count] : taken) other += way.first == faster ? 0 : count;
    EXPECT_LE(other, 4);
    EXPECT_GE(other, 2);
  }
}

/// A run of few long passes has no time for many trials; its first ones make connections.
TEST(PassChoice, FewLongPassesAreHardlySlowerThanTheBest) {
  PassFacts facts = slow_links();
  facts.between = {1e-4, 5e7};
  PassChoices choices(facts);
  const auto takes = [](PassWay way) {
    return (way.route == Route::flat ? 1.25 : 1) * (1 + 0.3 / way.chunks);
  };
  std::map<Route, int> before;
  double seconds = 0;
  run(choices, {Phase::prefill, 256}, 24, [&](PassWay way) {
    const double connects = before[way.route]++ == 0 ? 0.2 : 0;
    seconds += takes(way);
    return takes(way) + connects;
  });
  EXPECT_LT(seconds, 1.05 * 24 * takes({Route::nodes, 8}));
}

/// Eight passes of every way would be most of a short run.
TEST(PassChoice, ShortPassesThatAreBehindAreNotTriedLong) {
  PassFacts facts = slow_links();
  facts.between = {1e-5, 4e9};  // estimates are close, so that both routes are tried
  PassChoices choices(facts);
  const auto taken = run(
      choices, {Phase::prefill, 2000}, 100,
      [](PassWay way) { return (way.route == Route::nodes ? 0.004 : 0.005) + 0.001 / way.chunks; },
      0.003);
  int behind = 0;
  for (const auto& [way, count] : taken) behind += way.first == Route::flat ? count : 0;
  EXPECT_EQ(most_taken(taken).first, Route::nodes);
  EXPECT_LE(behind, 3 * 4);  // three of each count of chunks
}

TEST(PassChoice, WhatIsAskedForIsTaken) {
  PassFacts facts = slow_links();
  facts.routes = {Route::flat};
  facts.chunk_counts = {3};
  PassChoices choices(facts);
  const auto taken = run(choices, {Phase::prefill, 2000}, 10, [](PassWay) { return 0.1; });
  EXPECT_EQ(taken, (std::map<std::pair<Route, int>, int>{{{Route::flat, 3}, 10}}));
  const auto few = run(choices, {Phase::prefill, 70}, 10, [](PassWay) { return 0.1; });
  EXPECT_EQ(few, (std::map<std::pair<Route, int>, int>{{{Route::flat, 2}, 10}}));
}

TEST(PassChoice, RanksThatHearTheSameChooseTheSame) {
  PassChoices a(slow_links());
  PassChoices b(slow_links());
  PassCost cost;
  for (int i = 0; i < 500; ++i) {
    const PassSize size{i % 3 == 0 ? Phase::prefill : Phase::decode, 1 + i * 37 % 2048};
    const PassWay way = a.next(size, cost);
    ASSERT_EQ(way, b.next(size, cost));
    cost.seconds = 0.001 * (1 + i % 7);
    cost.compute_seconds = 0.0005 * (1 + i % 5);
    cost.flat_rows += 300;
    cost.node_rows += 200 + i % 50;
    cost.node_returns += 250;
    cost.routed_tokens += 100;
  }
  const auto records = a.records();
  std::int64_t passes = 0;
  for (const PassRecord& record : records) passes += record.passes;
  EXPECT_EQ(passes, 500);
}

TEST(OutputOfPass, GoesByRowsOnceReadingTheWholeIsNotWhatTakesLong) {
  using compute::OutputCut;
  EXPECT_EQ(output_of_pass(0, 1, 12), OutputCut::columns);
  EXPECT_EQ(output_of_pass(11, 1, 12), OutputCut::columns);
  EXPECT_EQ(output_of_pass(12, 1, 12), OutputCut::rows);
  EXPECT_EQ(output_of_pass(47, 4, 12), OutputCut::columns);  // each chunk reads the weights
  EXPECT_EQ(output_of_pass(48, 4, 12), OutputCut::rows);
}

}  // namespace
}  // namespace atl
