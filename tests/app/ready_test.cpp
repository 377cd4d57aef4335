#include "app/plan/ready.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>
#include <vector>

#include "tests/app/plan_shapes.hpp"

namespace atl {
namespace {

Step step_of(StepKind kind, int chunk, std::vector<std::int32_t> deps) {
  return {kind, 0, static_cast<std::int16_t>(chunk), std::move(deps)};
}

TEST(ReadySteps, ArithmeticFollowsArithmeticInTheQueueAndMessagesWaitForIt) {
  ReadySteps steps({{step_of(StepKind::attention, 0, {}), step_of(StepKind::route, 0, {0}),
                     step_of(StepKind::counts, 0, {1}), step_of(StepKind::experts, 0, {2})},
                    1,
                    true,
                    {}});
  steps.begin();
  EXPECT_EQ(steps.next_arithmetic(2), 0);
  EXPECT_EQ(steps.next_arithmetic(2), 1);  // behind the one it waits for
  EXPECT_EQ(steps.next_arithmetic(2), -1);
  EXPECT_TRUE(steps.take_messages().empty());
  steps.completed(0);
  EXPECT_TRUE(steps.take_messages().empty());
  steps.completed(1);
  const auto messages = steps.take_messages();
  EXPECT_EQ(std::vector<std::int32_t>(messages.begin(), messages.end()),
            std::vector<std::int32_t>{2});
  EXPECT_TRUE(steps.take_messages().empty());  // each once
  EXPECT_EQ(steps.next_arithmetic(2), -1);     // its rows are not there
  steps.completed(2);
  EXPECT_EQ(steps.next_arithmetic(2), 3);
  EXPECT_FALSE(steps.all_completed());
  steps.completed(3);
  EXPECT_TRUE(steps.all_completed());
}

TEST(ReadySteps, TheFirstInTheScheduleGoesFirstAndTheQueueIsBounded) {
  ReadySteps steps({{step_of(StepKind::counts, 0, {}), step_of(StepKind::merge, 0, {0}),
                     step_of(StepKind::attention, 1, {}), step_of(StepKind::attention, 2, {}),
                     step_of(StepKind::attention, 3, {})},
                    4,
                    true,
                    {}});
  steps.begin();
  EXPECT_EQ(steps.take_messages().size(), 1U);
  EXPECT_EQ(steps.next_arithmetic(2), 2);
  EXPECT_EQ(steps.next_arithmetic(2), 3);
  EXPECT_EQ(steps.next_arithmetic(2), -1);  // two are under way
  steps.completed(0);                       // rows came back meanwhile
  steps.completed(2);
  EXPECT_EQ(steps.next_arithmetic(2), 1);  // before the attention that was ready earlier
}

/// Whatever completes first, every step runs once and after all that it waits for; messages never
/// begin before their arithmetic has completed.
TEST(ReadySteps, EveryOrderOfCompletionEndsThePass) {
  std::mt19937 random(7);
  for (int trial = 0; trial < 50; ++trial) {
    const ModelShape shape = shape_with(4, 1);
    const int chunks = 1 + trial % 5;
    ReadySteps steps(trial % 2 == 0 ? overlapped_schedule(shape, chunks)
                                    : serial_schedule(shape, chunks));
    for (int pass = 0; pass < 2; ++pass) {
      steps.begin();
      std::set<std::int32_t> begun;
      std::set<std::int32_t> completed;
      std::vector<std::int32_t> computing;
      std::vector<std::int32_t> travelling;
      while (!steps.all_completed()) {
        for (const auto step : steps.take_messages()) {
          for (const auto dep : steps.step(step).deps) ASSERT_TRUE(completed.contains(dep));
          ASSERT_TRUE(begun.insert(step).second);
          travelling.push_back(step);
        }
        for (auto step = steps.next_arithmetic(3); step >= 0; step = steps.next_arithmetic(3)) {
          for (const auto dep : steps.step(step).deps) ASSERT_TRUE(begun.contains(dep));
          ASSERT_TRUE(begun.insert(step).second);
          computing.push_back(step);
        }
        ASSERT_LE(computing.size(), 3U);
        ASSERT_FALSE(computing.empty() && travelling.empty());
        // Arithmetic completes in order, messages in any.
        const bool message = computing.empty() || (!travelling.empty() && random() % 2 == 0);
        auto& list = message ? travelling : computing;
        const std::size_t at = message ? random() % list.size() : 0;
        const auto step = list[at];
        list.erase(list.begin() + static_cast<std::ptrdiff_t>(at));
        completed.insert(step);
        steps.completed(step);
      }
      EXPECT_EQ(completed.size(), steps.schedule().steps.size());
    }
  }
}

}  // namespace
}  // namespace atl
