// ranks: 1 2 3
#include <gtest/gtest.h>

#include "app/run/groups.hpp"
#include "app/run/timeline.hpp"
#include "comm/communicator.hpp"
#include "tests/mpi_main.hpp"

namespace atl {
namespace {

/// One MoE layer, one chunk; steps by kind.
Schedule one_layer() {
  ModelShape shape;
  shape.num_layers = 1;
  shape.layer_is_dense = {false};
  return overlapped_schedule(shape, 1);
}

std::size_t index_of(const Schedule& schedule, StepKind kind) {
  std::size_t i = 0;
  while (schedule.steps[i].kind != kind) ++i;
  return i;
}

TEST(Timeline, SplitsAPassIntoItsShares) {
  const comm::Communicator world = comm::Communicator::world();
  const Schedule schedule = one_layer();
  Timeline timeline(world.size(), 0, 100);
  const int last = world.size() - 1;
  // All times around the real now, since end_pass reads the clock.
  double t = now_seconds() - 10;
  world.allreduce(std::span(&t, 1), comm::Communicator::Reduce::min);
  timeline.begin_pass(Phase::prefill, schedule, t, t + 0.5);  // 0.5 s agreeing: waiting
  timeline.computed(schedule.steps[index_of(schedule, StepKind::route)], {t + 1, t + 3});
  // The last rank enters the exchange at 4, the others at 2; it ends at 6 everywhere.
  const double posted = world.rank() == last ? t + 4 : t + 2;
  timeline.exchanged(0, schedule, index_of(schedule, StepKind::counts), posted, t + 6);
  timeline.computed(schedule.steps[index_of(schedule, StepKind::experts)], {t + 5, t + 9});
  timeline.exchanged(0, schedule, index_of(schedule, StepKind::dispatch), t + 9, t + 9);
  timeline.exchanged(0, schedule, index_of(schedule, StepKind::combine), t + 9, t + 9);
  timeline.end_pass({7, 5, 2});
  timeline.flush(Groups(world,
                        JobLayout({}, std::vector<int>(static_cast<std::size_t>(world.size()))),
                        /*nodes=*/false));

  const PhaseTimes& times = timeline.times(Phase::prefill);
  EXPECT_EQ(timeline.times(Phase::decode).wall, 0);
  EXPECT_NEAR(times.compute, 6, 1e-6);
  EXPECT_NEAR(times.exchange, 2, 1e-6);       // 4 to 6
  EXPECT_NEAR(times.overlapped, 1, 1e-6);     // 5 to 6
  EXPECT_NEAR(times.communication, 1, 1e-6);  // 4 to 5
  const bool waited = world.rank() != last;
  EXPECT_NEAR(times.synchronisation, waited ? 1.5 : 0.5, 1e-6);  // 3 to 4, and agreeing
  EXPECT_NEAR(times.wall,
              times.compute + times.communication + times.synchronisation + times.overhead, 1e-9);
  EXPECT_NEAR(times.overlapped_share(), 0.5, 1e-6);
  EXPECT_EQ(times.processed_tokens, 7);
  EXPECT_EQ(times.prompt_tokens, 5);
  EXPECT_EQ(times.new_tokens, 2);
  EXPECT_NEAR(timeline.waited_for()[static_cast<std::size_t>(last)], waited ? 2.0 : 0.0, 1e-6);
  EXPECT_EQ(timeline.trace().size(), 5U);
}

/// Two passes at a time: each second counts once, in the pass whose turn it is.
TEST(Timeline, PassesBesideOneAnotherCountTheirTimeOnce) {
  const comm::Communicator world = comm::Communicator::world();
  const Groups groups(world,
                      JobLayout({}, std::vector<int>(static_cast<std::size_t>(world.size()))),
                      /*nodes=*/false);
  const Schedule schedule = one_layer();
  const Step& experts = schedule.steps[index_of(schedule, StepKind::experts)];
  Timeline timeline(world.size(), 0, 0, 2);
  double t = now_seconds() - 1000;
  world.allreduce(std::span(&t, 1), comm::Communicator::Reduce::min);
  // Every second a pass begins; each is under way for two, and computes the last 0.6 s of the
  // first.
  constexpr int passes = 150;
  double last_end = 0;
  for (int pass = 0; pass < passes; ++pass) {
    const double begin = t + pass;
    if (pass >= 2) timeline.end_pass({1, 0, 1}, pass % 2);
    if (timeline.full()) timeline.flush(groups);
    timeline.begin_pass(Phase::decode, schedule, begin, begin, pass % 2);
    if (pass > 0) timeline.computed(experts, {begin - 0.6, begin});
    last_end = begin;
    timeline.exchanged(pass % 2, schedule, index_of(schedule, StepKind::dispatch), begin + 0.1,
                       begin + 0.1 + 1.2);
  }
  timeline.end_pass({1, 0, 1}, (passes - 2) % 2);
  timeline.end_pass({1, 0, 1}, (passes - 1) % 2);
  timeline.flush(groups);
  const PhaseTimes& times = timeline.times(Phase::decode);
  EXPECT_EQ(times.passes, passes);
  EXPECT_EQ(times.new_tokens, passes);
  EXPECT_NEAR(times.wall, now_seconds() - t, 1);
  EXPECT_NEAR(times.compute, 0.6 * (passes - 1), 1e-6);
  EXPECT_NEAR(times.exchange, last_end + 1.3 - t - 0.1, 1e-6);  // always one of the two
  EXPECT_NEAR(times.wall,
              times.compute + times.communication + times.synchronisation + times.overhead, 1e-6);
}

TEST(Timeline, KeepsNoMoreTraceThanAsked) {
  const Schedule schedule = one_layer();
  Timeline timeline(1, 0, 2);
  timeline.begin_pass(Phase::decode, schedule, 0, 0);
  for (int i = 0; i < 5; ++i) timeline.computed(schedule.steps[0], {1, 2});
  EXPECT_EQ(timeline.trace().size(), 2U);
  EXPECT_EQ(timeline.dropped_trace_events(), 3);
}

}  // namespace
}  // namespace atl
