#include "app/plan/replication.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <set>
#include <tuple>
#include <vector>

namespace atl {
namespace {

using Rows = std::vector<std::int64_t>;

/// Experts in turn, as even_placement() gives them out.
ExpertsOfRanks in_turn(int experts, int ranks, int slots) {
  ExpertsOfRanks of(static_cast<std::size_t>(ranks));
  for (int place = 0; place < ranks * slots; ++place) {
    of[static_cast<std::size_t>(place / slots)].push_back(place % experts);
  }
  return of;
}

Rows skewed_rows(int experts, unsigned seed) {
  std::mt19937 random(seed);
  std::lognormal_distribution<double> law(5, 1);
  Rows rows;
  for (int e = 0; e < experts; ++e) rows.push_back(static_cast<std::int64_t>(law(random)));
  return rows;
}

void expect_sound(const ExpertsOfRanks& before, const ExpertsOfRanks& after, int experts) {
  std::set<int> placed;
  ASSERT_EQ(before.size(), after.size());
  for (std::size_t rank = 0; rank < after.size(); ++rank) {
    EXPECT_EQ(after[rank].size(), before[rank].size());
    const std::set<int> own(after[rank].begin(), after[rank].end());
    EXPECT_EQ(own.size(), after[rank].size()) << "an expert is twice on rank " << rank;
    placed.insert(own.begin(), own.end());
  }
  EXPECT_EQ(static_cast<int>(placed.size()), experts) << "an expert has no place";
  EXPECT_GE(*placed.begin(), 0);
  EXPECT_LT(*placed.rbegin(), experts);
}

TEST(Replication, IsSoundAndNoWorseForAnyLoads) {
  for (const auto& [experts, ranks, slots] :
       {std::tuple{16, 16, 1}, {16, 24, 1}, {16, 4, 6}, {5, 6, 2}, {64, 8, 9}, {7, 7, 7}}) {
    for (unsigned seed = 0; seed < 20; ++seed) {
      const ExpertsOfRanks before = in_turn(experts, ranks, slots);
      const Rows rows = skewed_rows(experts, seed);
      const ExpertsOfRanks after = replicated(rows, before);
      expect_sound(before, after, experts);
      EXPECT_LE(busiest_rows(rows, after), busiest_rows(rows, before) * (1 + 1e-12));
      EXPECT_GE(busiest_rows(rows, after), least_busiest_rows(rows, before) * (1 - 1e-12));
    }
  }
}

TEST(Replication, OnePlaceARankIsOptimal) {
  for (unsigned seed = 0; seed < 20; ++seed) {
    const ExpertsOfRanks before = in_turn(16, 24, 1);
    const Rows rows = skewed_rows(16, seed);
    const ExpertsOfRanks after = replicated(rows, before);
    // Of all ways to give 8 more replicas none has a less busy replica than giving them out
    // greedily.
    double most = 0;
    std::vector<int> replicas(16);
    for (const auto& own : after) ++replicas[static_cast<std::size_t>(own[0])];
    for (std::size_t e = 0; e < rows.size(); ++e) {
      most = std::max(most, static_cast<double>(rows[e]) / replicas[e]);
    }
    EXPECT_NEAR(busiest_rows(rows, after), most, 1e-9);
    // The smallest bound that 24 replicas can keep, by trying each value that a bound can have.
    double best = 1e300;
    for (const std::int64_t of : rows) {
      for (int parts = 1; parts <= 9; ++parts) {
        const double bound = static_cast<double>(of) / parts;
        int needed = 0;
        for (const std::int64_t r : rows) {
          needed += std::max(1, static_cast<int>(std::ceil(static_cast<double>(r) / bound - 1e-9)));
        }
        if (needed <= 24) best = std::min(best, bound);
      }
    }
    EXPECT_NEAR(most, best, 1e-6 * best) << seed;
  }
}

TEST(Replication, SeveralPlacesComeNearTheBound) {
  for (unsigned seed = 0; seed < 20; ++seed) {
    const ExpertsOfRanks before = in_turn(64, 8, 10);
    const Rows rows = skewed_rows(64, seed);
    EXPECT_LE(busiest_rows(rows, replicated(rows, before)), 1.1 * least_busiest_rows(rows, before));
  }
}

TEST(Replication, MovesNothingThatIsWellPlaced) {
  const ExpertsOfRanks before = in_turn(16, 24, 1);
  const Rows rows = skewed_rows(16, 3);
  const ExpertsOfRanks after = replicated(rows, before);
  EXPECT_FALSE(moves_between(before, after).empty());
  EXPECT_TRUE(moves_between(after, replicated(rows, after)).empty());
  const Rows none(16);
  EXPECT_TRUE(moves_between(before, replicated(none, before)).empty());
}

TEST(Replication, MovesMakeOneOutOfTheOther) {
  for (unsigned seed = 0; seed < 20; ++seed) {
    const ExpertsOfRanks before = in_turn(16, 6, 4);
    const ExpertsOfRanks after = replicated(skewed_rows(16, seed), before);
    ExpertsOfRanks made = before;
    for (const ExpertMove& move : moves_between(before, after)) {
      const auto& from = before[static_cast<std::size_t>(move.from)];
      EXPECT_NE(std::find(from.begin(), from.end(), move.expert), from.end());
      EXPECT_NE(move.from, move.to);
      made[static_cast<std::size_t>(move.to)][static_cast<std::size_t>(move.local)] = move.expert;
    }
    EXPECT_EQ(made, after);
  }
}

}  // namespace
}  // namespace atl
