#include "app/plan/checkpoint_policy.hpp"

#include <gtest/gtest.h>

#include <initializer_list>

namespace atl {
namespace {

using Kind = CheckpointMove::Kind;
using Phase = CheckpointPhase;

CheckpointMove move_of(std::initializer_list<Phase> phases, bool under_way) {
  std::vector<RankLoad> loads;
  for (const Phase phase : phases) {
    loads.emplace_back().checkpoint = static_cast<std::int32_t>(phase);
  }
  return next_move(loads, under_way);
}

TEST(CheckpointPolicy, CountsPassesFromTheBeginningOfTheLastOne) {
  CheckpointPolicy policy({.passes = 10, .seconds = 0});
  policy.start_at(1000);  // where an earlier run stopped
  EXPECT_FALSE(policy.due(1000, 5));
  EXPECT_FALSE(policy.due(1009, 1e6));  // whatever time it is
  EXPECT_TRUE(policy.due(1010, 5));
  EXPECT_TRUE(policy.due(1025, 5));  // the one before took long
  policy.begun(1025, 6);
  EXPECT_EQ(policy.last_pass(), 1025);
  EXPECT_FALSE(policy.due(1034, 7));
  EXPECT_TRUE(policy.due(1035, 7));
}

TEST(CheckpointPolicy, CountsSecondsFromTheFirstPassAndThenFromTheLastOne) {
  CheckpointPolicy policy({.passes = 0, .seconds = 90});
  policy.start_at(7);
  EXPECT_FALSE(policy.due(7, 5000));  // set-up took long, and is not counted
  EXPECT_FALSE(policy.due(1000000, 5089));
  EXPECT_TRUE(policy.due(8, 5090));
  policy.begun(8, 5100);
  EXPECT_FALSE(policy.due(9, 5189));
  EXPECT_TRUE(policy.due(9, 5190));
}

TEST(CheckpointPolicy, RankZeroSaysWhenOneBegins) {
  EXPECT_EQ(move_of({Phase::due, Phase::idle}, false).kind, Kind::begin);
  EXPECT_EQ(move_of({Phase::idle, Phase::due}, false).kind, Kind::none);
  EXPECT_EQ(move_of({Phase::idle, Phase::idle}, false).kind, Kind::none);
}

TEST(CheckpointPolicy, OneEndsWhenAllRanksHaveWritten) {
  EXPECT_EQ(move_of({Phase::writing, Phase::writing}, true).kind, Kind::go_on);
  EXPECT_EQ(move_of({Phase::written, Phase::writing}, true).kind, Kind::go_on);
  EXPECT_EQ(move_of({Phase::written, Phase::written}, true).kind, Kind::end);
}

TEST(CheckpointPolicy, OneRankThatFailsEndsItForAll) {
  const CheckpointMove move =
      move_of({Phase::written, Phase::writing, Phase::failed, Phase::failed}, true);
  EXPECT_EQ(move.kind, Kind::give_up);
  EXPECT_EQ(move.failed_rank, 2);
}

TEST(CheckpointPolicy, TheNewestTwoStayAndTheOneStillRead) {
  using Files = std::vector<std::string>;
  EXPECT_EQ(retired(Files{}, ""), Files{});
  EXPECT_EQ(retired(Files{"1", "2"}, ""), Files{});
  EXPECT_EQ(retired(Files{"1", "2", "3"}, ""), Files{"1"});
  EXPECT_EQ(retired(Files{"1", "2", "3", "4", "5"}, ""), (Files{"1", "2", "3"}));
  EXPECT_EQ(retired(Files{"1", "2", "3", "4", "5"}, "2"), (Files{"1", "3"}));
  EXPECT_EQ(retired(Files{"1", "2", "3"}, "1"), Files{});
  EXPECT_EQ(retired(Files{"1", "2", "3"}, "3"), Files{"1"});
}

}  // namespace
}  // namespace atl
