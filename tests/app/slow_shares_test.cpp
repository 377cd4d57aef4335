#include "app/plan/slow_shares.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

namespace atl {
namespace {

constexpr int num_ranks = 5;
using Shares = std::vector<std::int32_t>;

Shares shares_of(const SlowShares& shares) {
  return {shares.shares().begin(), shares.shares().end()};
}

LoadWatch one_group() {
  return {std::vector<int>(num_ranks), std::vector<int>(num_ranks)};
}

/// So many passes with rows by shares; rank 1 takes `times` as long as others for a row. How often
/// shares changed.
int run(LoadWatch& watch, SlowShares& shares, double times, int passes) {
  int changes = 0;
  for (int pass = 0; pass < passes; ++pass) {
    std::vector<RankWork> works;
    for (int rank = 0; rank < num_ranks; ++rank) {
      const std::int64_t rows =
          (900 + 40 * rank) * shares.shares()[static_cast<std::size_t>(rank)] / 64;
      works.push_back(
          {rows, (1e-4 + 1e-6 * static_cast<double>(rows)) * (rank == 1 ? times : 1), 0});
    }
    watch.add(works);
    if (shares.look(watch)) ++changes;
  }
  return changes;
}

TEST(SlowShares, ASlowRankKeepsWhatItDoesInTheOthersTimeAndGetsItBack) {
  LoadWatch watch = one_group();
  SlowShares shares(num_ranks, 4);
  EXPECT_EQ(run(watch, shares, 1, 40), 0);
  EXPECT_EQ(shares_of(shares), Shares(num_ranks, 64));

  // Averages over passes go from one to two and a half.
  EXPECT_GT(run(watch, shares, 2.5, 300), 0);
  const Shares slow = shares_of(shares);
  EXPECT_NEAR(slow[1], 64 / 2.5, 3);
  for (const int rank : {0, 2, 3, 4}) EXPECT_EQ(slow[static_cast<std::size_t>(rank)], 64);
  EXPECT_EQ(run(watch, shares, 2.5, 500), 0);  // it stays slow, and keeps what it has

  EXPECT_GT(run(watch, shares, 1, 800), 0);
  EXPECT_EQ(shares_of(shares), Shares(num_ranks, 64));
}

TEST(SlowShares, ARankFarBehindGetsNothingButATrial) {
  LoadWatch watch = one_group();
  SlowShares shares(num_ranks, 4);
  run(watch, shares, 9, 64);
  EXPECT_EQ(shares_of(shares)[1], 0);
  int least = 64, most = 0;
  for (int i = 0; i < 60; ++i) {
    run(watch, shares, 9, 16);
    least = std::min(least, shares.shares()[1]);
    most = std::max(most, shares.shares()[1]);
  }
  EXPECT_EQ(least, 0);
  EXPECT_EQ(most, 8);  // an eighth, to see whether it still is
  run(watch, shares, 1, 1600);
  EXPECT_EQ(shares_of(shares)[1], 64);
}

}  // namespace
}  // namespace atl
