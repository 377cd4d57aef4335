#include "app/plan/admission.hpp"

#include <gtest/gtest.h>

#include <random>

namespace atl {
namespace {

RankLoad room(std::int64_t pages, std::int32_t sequences, std::int64_t work = 0) {
  RankLoad load;
  load.free_pages = pages;
  load.free_sequences = sequences;
  load.remaining_work = work;
  return load;
}

WaitingRequest waiting(std::int32_t request, std::int64_t pages, std::int64_t prompt = 10,
                       std::int64_t new_tokens = 5, bool resumed = false) {
  return {request, pages, prompt, new_tokens, resumed};
}

/// All that is given out at once, as pairs of request and rank.
std::vector<std::pair<int, int>> given(Admission& admission, std::span<RankLoad> loads) {
  std::vector<std::pair<int, int>> all;
  while (const auto grant = admission.next(loads)) all.emplace_back(grant->request, grant->rank);
  return all;
}

using Given = std::vector<std::pair<int, int>>;

TEST(Admission, TheRankWithTheLeastWorkTakesARequestAndOfEqualsTheLowest) {
  EXPECT_EQ(rank_for(waiting(0, 1), std::vector{room(9, 9, 30), room(9, 9, 20), room(9, 9, 20)}),
            1);
  EXPECT_EQ(rank_for(waiting(0, 1), std::vector{room(9, 9, 7), room(9, 9, 7)}), 0);
}

TEST(Admission, ARankNeedsAFreeSequenceAndAllPages) {
  EXPECT_EQ(rank_for(waiting(0, 4), std::vector{room(9, 0), room(3, 9), room(4, 1, 99)}), 2);
  EXPECT_EQ(rank_for(waiting(0, 4), std::vector{room(9, 0), room(3, 9)}), -1);
  EXPECT_EQ(rank_for(waiting(0, 4), {}), -1);
}

TEST(Admission, WhatIsGivenCountsAtOnce) {
  Admission admission(std::vector{waiting(0, 2, 10, 5), waiting(1, 2, 3, 1), waiting(2, 2, 3, 1),
                                  waiting(3, 2, 3, 1)});
  EXPECT_EQ(admission.work(), 15 + 3 * 4);
  std::vector<RankLoad> loads = {room(9, 2), room(5, 9)};
  // The long one keeps rank 0 busy, until rank 1 has no pages left.
  EXPECT_EQ(given(admission, loads), (Given{{0, 0}, {1, 1}, {2, 1}, {3, 0}}));
  EXPECT_EQ(loads[0].prompt_tokens, 13);
  EXPECT_EQ(loads[0].remaining_work, 19);
  EXPECT_EQ(loads[0].free_pages, 5);
  EXPECT_EQ(loads[0].free_sequences, 0);
  EXPECT_EQ(loads[1].free_pages, 1);
  EXPECT_EQ(admission.work(), 0);
  EXPECT_TRUE(admission.waiting().empty());
}

TEST(Admission, ASmallRequestDoesNotOvertakeALargeOneThatWaits) {
  Admission admission(std::vector{waiting(4, 8), waiting(5, 1)});
  std::vector<RankLoad> loads = {room(7, 9), room(7, 9)};
  EXPECT_TRUE(given(admission, loads).empty());
  EXPECT_EQ(loads[0].free_pages, 7);
  ASSERT_EQ(admission.waiting().size(), 2U);
  EXPECT_EQ(admission.waiting()[0].request, 4);
  loads[1].free_pages = 8;  // a sequence ended there
  EXPECT_EQ(given(admission, loads), (Given{{4, 1}, {5, 0}}));
}

TEST(Admission, ResumedRequestsGoFirstWithWhatIsLeftOfThem) {
  Admission admission(
      std::vector{waiting(0, 1), waiting(1, 1, 0, 3, true), waiting(2, 1, 4, 3, true)});
  EXPECT_TRUE(admission.waiting().front().resumed);
  EXPECT_EQ(admission.work(), 15 + 3 + 7);
  std::vector<RankLoad> loads = {room(9, 1)};
  EXPECT_EQ(given(admission, loads), (Given{{1, 0}}));
  EXPECT_EQ(loads[0].decoding, 1);  // its whole prompt is cached
  EXPECT_EQ(loads[0].prompt_tokens, 0);
  EXPECT_TRUE(admission.waiting().front().resumed);
  loads = {room(9, 9)};
  EXPECT_EQ(given(admission, loads), (Given{{2, 0}, {0, 0}}));
  EXPECT_EQ(loads[0].decoding, 0);
  EXPECT_EQ(loads[0].prompt_tokens, 14);
  EXPECT_TRUE(admission.waiting().empty());
}

TEST(Admission, WhatIsReadLaterWaitsBehindTheOthers) {
  Admission admission;
  std::vector<RankLoad> loads = {room(2, 9)};
  EXPECT_TRUE(given(admission, loads).empty());
  admission.add(std::vector{waiting(0, 1), waiting(1, 2)});
  EXPECT_EQ(given(admission, loads), (Given{{0, 0}}));
  admission.add(std::vector{waiting(2, 1)});
  EXPECT_TRUE(given(admission, loads).empty());  // the second one keeps its turn
  EXPECT_EQ(admission.work(), 2 * 15);
  loads = {room(9, 9)};
  EXPECT_EQ(given(admission, loads), (Given{{1, 0}, {2, 0}}));
  admission.add(std::vector{waiting(3, 1)});
  EXPECT_EQ(given(admission, loads), (Given{{3, 0}}));
  EXPECT_EQ(admission.work(), 0);
}

/// Every request is given out once, in order, and never beyond what a rank has.
TEST(Admission, KeepsOrderAndLimitsOnAnyRanks) {
  std::mt19937 random(3);
  for (int trial = 0; trial < 50; ++trial) {
    std::vector<WaitingRequest> requests;
    for (int i = 0; i < 40; ++i) {
      requests.push_back(waiting(i, 1 + random() % 8, random() % 90, random() % 30));
    }
    Admission admission(requests);
    const std::size_t ranks = 1 + random() % 6;
    int next = 0;
    while (!admission.waiting().empty()) {
      std::vector<RankLoad> loads;
      for (std::size_t r = 0; r < ranks; ++r) {
        loads.push_back(room(8 + random() % 8, 1 + random() % 3, random() % 100));
      }
      for (const auto& [request, rank] : given(admission, loads)) EXPECT_EQ(request, next++);
      for (const RankLoad& load : loads) {
        EXPECT_GE(load.free_pages, 0);
        EXPECT_GE(load.free_sequences, 0);
      }
    }
    EXPECT_EQ(next, 40);
    EXPECT_EQ(admission.work(), 0);
  }
}

}  // namespace
}  // namespace atl
