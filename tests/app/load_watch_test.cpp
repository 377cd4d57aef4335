#include "app/plan/load_watch.hpp"

#include <gtest/gtest.h>

#include <vector>

namespace atl {
namespace {

constexpr double second_of_row = 1e-6, second_of_pass = 2e-3;

/// So many passes in which ranks take what their rows take, times a factor.
LoadWatch watched(const std::vector<std::int64_t>& rows, const std::vector<double>& factors,
                  int passes = 40, std::vector<int> groups = {}) {
  if (groups.empty()) groups.resize(rows.size());
  LoadWatch watch(groups, std::vector<int>(rows.size()));
  for (int pass = 0; pass < passes; ++pass) {
    std::vector<RankWork> works;
    for (std::size_t rank = 0; rank < rows.size(); ++rank) {
      // Some noise, another in each pass.
      const double noise =
          1 + 0.1 * static_cast<double>((pass * 7 + static_cast<int>(rank) * 5) % 3 - 1);
      const double seconds = second_of_pass + second_of_row * static_cast<double>(rows[rank]);
      works.push_back({rows[rank], seconds * factors[rank] * noise, 0});
    }
    watch.add(works);
  }
  return watch;
}

TEST(LoadWatch, ASlowRankIsNamedWhateverItsRows) {
  for (const std::int64_t own : {0, 100, 1000, 8000}) {
    const LoadWatch watch = watched({900, own, 1300, 2000, 1000}, {1, 2.5, 1, 1, 1});
    const std::vector<SlowRank> slow = watch.slow_ranks();
    ASSERT_EQ(slow.size(), 1U) << own;
    EXPECT_EQ(slow[0].rank, 1);
    EXPECT_GT(slow[0].times, own == 8000 ? 1.5 : 2.2);
    EXPECT_LT(slow[0].times, 2.8);
    EXPECT_GT(watch.slow_passes()[1], 0);
    EXPECT_EQ(watch.slow_passes()[0], 0);
  }
}

TEST(LoadWatch, ALoadedRankIsNotASlowOne) {
  // The others' rows are too alike to tell what a row takes.
  const LoadWatch alike = watched({1000, 1010, 20000, 990, 1005}, {1, 1, 1, 1, 1});
  EXPECT_TRUE(alike.slow_ranks().empty());
  EXPECT_EQ(alike.busiest_rank().number, 2);
  EXPECT_NEAR(alike.busiest_rank().over_mean, 20000 * 5 / 24005.0, 1e-9);
  EXPECT_TRUE(watched({0, 0, 20000}, {1, 1, 1}).slow_ranks().empty());
  EXPECT_TRUE(watched({100, 4000, 20000, 7}, {1, 1, 1, 1}).slow_ranks().empty());
}

TEST(LoadWatch, TwoSlowRanksOfManyAreNamedTheSlowestFirst) {
  std::vector<std::int64_t> rows;
  for (int rank = 0; rank < 16; ++rank) rows.push_back(500 + 300 * rank);
  std::vector<double> factors(rows.size(), 1);
  factors[3] = 1.8;
  factors[12] = 3;
  const std::vector<SlowRank> slow = watched(rows, factors).slow_ranks();
  ASSERT_EQ(slow.size(), 2U);
  EXPECT_EQ(slow[0].rank, 12);
  EXPECT_EQ(slow[1].rank, 3);
}

TEST(LoadWatch, FewRanksOrPassesSayNothing) {
  EXPECT_TRUE(watched({1000, 1000}, {1, 5}).slow_ranks().empty());
  EXPECT_TRUE(
      watched({1000, 1000, 1000}, {1, 5, 1}, LoadWatch::least_passes - 1).slow_ranks().empty());
  EXPECT_FALSE(
      watched({1000, 1000, 1000}, {1, 5, 1}, LoadWatch::least_passes).slow_ranks().empty());
}

TEST(LoadWatch, RanksAreComparedInsideTheirGroup) {
  // The second group's layers take three times as long for all of its ranks.
  const LoadWatch watch =
      watched({1000, 1000, 1000, 500, 500, 800}, {1, 1, 1, 3, 3, 3}, 40, {0, 0, 0, 1, 1, 1});
  EXPECT_TRUE(watch.slow_ranks().empty());
  EXPECT_EQ(watch.busiest_rank().number, 5);
  EXPECT_NEAR(watch.busiest_rank().over_mean, 800 * 3 / 1800.0, 1e-9);
}

TEST(LoadWatch, AveragesForgetAndIdlePassesDoNotCount) {
  LoadWatch watch({0, 0}, {0, 1});
  EXPECT_EQ(watch.busiest_rank().over_mean, 1);
  EXPECT_EQ(watch.busiest_node().over_mean, 1);
  watch.add(std::vector<RankWork>{{300, 1, 90}, {100, 1, 10}});
  EXPECT_NEAR(watch.busiest_rank().over_mean, 1.5, 1e-9);
  EXPECT_NEAR(watch.busiest_node().over_mean, 1.8, 1e-9);
  watch.add(std::vector<RankWork>(2));
  EXPECT_EQ(watch.passes(), 1);
  for (int pass = 0; pass < 300; ++pass)
    watch.add(std::vector<RankWork>{{100, 1, 10}, {300, 1, 90}});
  EXPECT_EQ(watch.busiest_rank().number, 1);
  EXPECT_NEAR(watch.busiest_rank().over_mean, 1.5, 0.01);
  EXPECT_EQ(watch.busiest_node().number, 1);
}

}  // namespace
}  // namespace atl
