#include "app/plan/update_policy.hpp"

#include <gtest/gtest.h>

#include <vector>

namespace atl {
namespace {

constexpr UpdateMode modes[] = {UpdateMode::drain, UpdateMode::in_flight};

void set(std::vector<RankLoad>& loads, UpdatePhase phase) {
  for (RankLoad& load : loads) load.update = static_cast<std::int32_t>(phase);
}

/// Two ranks with an update that is ready; the second has a request under way where that says so,
/// and one waits.
std::vector<RankLoad> ready_loads(bool under_way) {
  std::vector<RankLoad> loads(2);
  set(loads, UpdatePhase::ready);
  loads[0].next_pages = 3;
  if (under_way) loads[1].remaining_work = 5;
  return loads;
}

TEST(UpdatePolicy, IsOpenedAndJudgedWhateverIsUnderWay) {
  for (const UpdateMode mode : modes) {
    for (const bool under_way : {false, true}) {
      auto loads = ready_loads(under_way);
      set(loads, UpdatePhase::none);
      EXPECT_EQ(next_update_move(loads, mode), UpdateMove::none);
      loads[0].update = static_cast<std::int32_t>(UpdatePhase::found);
      EXPECT_EQ(next_update_move(loads, mode), UpdateMove::open);
      set(loads, UpdatePhase::checking);
      EXPECT_EQ(next_update_move(loads, mode), UpdateMove::none);
      loads[0].update = static_cast<std::int32_t>(UpdatePhase::checked);
      EXPECT_EQ(next_update_move(loads, mode), UpdateMove::none);  // the other rank still reads
      EXPECT_TRUE(admits_new(loads));
      set(loads, UpdatePhase::checked);
      EXPECT_EQ(next_update_move(loads, mode), UpdateMove::judge);
      EXPECT_TRUE(admits_new(loads));
    }
  }
}

TEST(UpdatePolicy, RequestsUnderWayEndFirst) {
  for (const bool under_way : {false, true}) {
    const auto loads = ready_loads(under_way);
    EXPECT_FALSE(admits_new(loads));
    EXPECT_EQ(next_update_move(loads, UpdateMode::drain),
              under_way ? UpdateMove::none : UpdateMove::take_up);
  }
}

TEST(UpdatePolicy, SoDoThoseThatAnEarlierRunBegan) {
  auto loads = ready_loads(false);
  loads[0].resumed_waiting = 1;
  EXPECT_EQ(next_update_move(loads, UpdateMode::drain), UpdateMove::none);
  EXPECT_EQ(next_update_move(loads, UpdateMode::in_flight), UpdateMove::take_up);
}

TEST(UpdatePolicy, ALineOfSamplesEndsWithTheWeightsThatItBeganWith) {
  auto loads = ready_loads(false);
  loads[0].line_begun = 1;
  EXPECT_TRUE(admits_new(loads));
  EXPECT_EQ(next_update_move(loads, UpdateMode::drain), UpdateMove::none);
  EXPECT_EQ(next_update_move(loads, UpdateMode::in_flight), UpdateMove::take_up);
}

TEST(UpdatePolicy, InFlightNothingIsWaitedFor) {
  auto loads = ready_loads(true);
  EXPECT_EQ(next_update_move(loads, UpdateMode::in_flight), UpdateMove::take_up);
  loads[0].next_pages = 0;
  EXPECT_EQ(next_update_move(loads, UpdateMode::in_flight), UpdateMove::take_up);
}

TEST(UpdatePolicy, WhereNothingIsLeftItStays) {
  for (const UpdateMode mode : modes) {
    auto loads = ready_loads(false);
    loads[0].next_pages = 0;
    EXPECT_EQ(next_update_move(loads, mode), UpdateMove::none);
    loads[0].next_pages = unread_pages;  // more may come
    EXPECT_EQ(next_update_move(loads, mode), UpdateMove::take_up);
  }
}

}  // namespace
}  // namespace atl
