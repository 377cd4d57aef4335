#include "app/plan/simulator.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "app/plan/layer_sample.hpp"
#include "compute/across_rows.hpp"
#include "tests/app/planned.hpp"

namespace atl {
namespace {

constexpr PassForm flat{Route::flat, compute::OutputCut::columns};
constexpr PassForm nodes{Route::nodes, compute::OutputCut::columns};

/// One rank sends to the other what the router says; arithmetic takes a second each.
class TwoRanks final : public PassModel {
 public:
  double bytes_there = 0, bytes_back = 0;
  bool lost = false;

  double seconds(int rank, int, const Step& step) const override {
    return step.kind == StepKind::route && rank == 1 ? 3 : 1;
  }
  void messages(Share, int, int, const Step& step, std::vector<Message>& out) const override {
    if (step.kind == StepKind::dispatch) out.push_back({0, 1, bytes_there, bytes_there, 1});
    if (step.kind == StepKind::combine) out.push_back({1, 0, bytes_back, bytes_back, 1});
  }
};

struct TwoRankRun {
  Machine machine;
  TwoRanks model;
  SimulationResult run() {
    machine.num_nodes = 2;
    machine.cuda = false;
    machine.between.rank_bytes_per_s = 1e6;
    const JobGroups groups(JobLayout({}, {0, 1}));
    const Network network(machine, 2);
    ModelShape shape;
    shape.num_layers = 1;
    shape.layer_is_dense = {false};
    const Schedule schedule = overlapped_schedule(shape, 1);
    SimulatorSetup setup;
    setup.groups = &groups;
    setup.machine = &machine;
    setup.network = &network;
    setup.model = &model;
    setup.schedules = {{&schedule}};
    setup.ranks = {0, 1};
    setup.grain = 0;
    setup.keep_steps = true;
    return Simulator(setup).run();
  }
};

TEST(Simulator, AddsUpOneLayerByHand) {
  // embed, attention, route; counts; dispatch; experts; combine; merge, head.
  TwoRankRun two;
  two.model.bytes_there = 2e6;  // two seconds
  two.model.bytes_back = 1e6;
  const SimulationResult result = two.run();
  // Rank 1 has routed at 5; rows arrive at 7, are computed at 8, are back at 9.
  EXPECT_NEAR(result.passes.front().end, 11, 1e-9);
  const TimeShares& first = result.rank_shares[0];
  EXPECT_NEAR(first.wall, 11, 1e-9);
  EXPECT_NEAR(first.compute, 6, 1e-9);  // its experts run while nothing is under way
  // Counters go through at once, since nobody tells anybody anything: 3 waits for 5.
  EXPECT_NEAR(first.compute + first.communication + first.synchronisation + first.overhead, 11,
              1e-9);
  EXPECT_NEAR(result.bytes[1], 2e6, 1e-3);
  EXPECT_NEAR(result.bytes[2], 1e6, 1e-3);
}

TEST(Simulator, HostsDelayWhatTheyPostAndSee) {
  TwoRankRun two;
  two.model.bytes_there = 2e6;
  two.model.bytes_back = 1e6;
  const double plain = two.run().passes.front().end;
  two.machine.between.latency_s = 0.01;
  const double with_latency = two.run().passes.front().end;
  // Each of the two large messages asks first.
  EXPECT_NEAR(with_latency - plain, 0.04, 1e-9);
  two.machine.poll_s = 0.1;
  EXPECT_GT(two.run().passes.front().end, with_latency + 0.5);
}

TEST(Simulator, SharesAddUpAndLinksCarryNoMoreThanTheyCan) {
  for (const Division& division :
       {Division{1, 1, 1, 1}, Division{2, 1, 2, 1}, Division{1, 2, 4, 4}, Division{1, 1, 2, 2}}) {
    const Planned planned(division);
    const int passes = division.pp > 1 ? 12 : 1;
    const PassPrice price =
        planned.pricer().price(planned.loads(passes, division.pp > 1 ? 1 : 2, 2000), flat, {});
    EXPECT_GT(price.seconds, 0);
    for (const TimeShares& s : price.rank_shares) {
      EXPECT_NEAR(s.compute + s.communication + s.synchronisation + s.overhead, s.wall,
                  1e-9 * s.wall);
    }
    EXPECT_LE(price.busiest_link_use(), 1.0001);
  }
}

TEST(Simulator, IsTheSameAgainAndNearlySoWithMergedSenders) {
  const Planned planned({1, 1, 1, 1});
  const auto loads = planned.loads(1, 2);
  for (const PassForm& form : {flat, nodes}) {
    const double exact = planned.pricer().price(loads, form, {false, 0.0, false, 1}).seconds;
    EXPECT_EQ(exact, planned.pricer().price(loads, form, {false, 0.0, false, 1}).seconds);
    EXPECT_NEAR(planned.pricer().price(loads, form, {false, 0.01, false, 2}).seconds / exact, 1,
                0.02);
    EXPECT_NEAR(planned.pricer().price(loads, form, {true, 0.05, false, 1}).seconds / exact, 1,
                0.1);
  }
}

TEST(Simulator, OverlapPaysAndSoDoesABetterNetwork) {
  Machine fast = made_machine();  // arithmetic takes about as long as messages
  fast.flops_per_s = fast.bytes_per_s = fast.row_bytes_per_s = 3e11;
  const Planned overlapped({1, 1, 1, 1}, true, 0.5, fast), serial({1, 1, 1, 1}, false, 0.5, fast);
  const double with = overlapped.pricer().price(overlapped.loads(1, 4), flat, {}).seconds;
  const double without = serial.pricer().price(serial.loads(1, 4), flat, {}).seconds;
  EXPECT_LT(with, without);
  Machine half = fast;
  half.between.rank_bytes_per_s /= 2;
  const Planned slower({1, 1, 1, 1}, true, 0.5, half);
  EXPECT_GT(slower.pricer().price(slower.loads(1, 4), flat, {}).seconds, with);
  Machine lame = fast;
  lame.speeds = {{5, 6, 1.0, 0.25}};
  const Planned one_slow({1, 1, 1, 1}, true, 0.5, lame);
  EXPECT_GT(one_slow.pricer().price(one_slow.loads(1, 4), flat, {}).seconds, with);
  const Planned uniform({1, 1, 1, 1}, true, 0, fast), skewed({1, 1, 1, 1}, true, 1.5, fast);
  EXPECT_GT(skewed.pricer().price(skewed.loads(1, 4), flat, {}).seconds,
            uniform.pricer().price(uniform.loads(1, 4), flat, {}).seconds);
}

TEST(Simulator, OtherPodsChangeTheAnswer) {
  Machine fast = made_machine();
  fast.flops_per_s = fast.bytes_per_s = fast.row_bytes_per_s = 3e11;
  const auto seconds = [&](const std::vector<LinkLevel>& levels, bool rails) {
    Machine machine = fast;
    machine.levels = levels;
    machine.rails = rails;
    const Planned planned({1, 1, 1, 1}, true, 0.5, machine);
    return planned.pricer().price(planned.loads(1, 4), flat, {}).seconds;
  };
  const double full = seconds({{"leaf", 2, 1}}, false);
  EXPECT_EQ(full, seconds({}, false));
  const double pods = seconds({{"leaf", 2, 4}}, false);
  EXPECT_GT(pods, 1.05 * full);
  EXPECT_GT(seconds({{"leaf", 1, 4}}, false), 1.1 * pods);
  // With rails what goes to another place of its node shares its place's uplink only.
  EXPECT_NE(seconds({{"leaf", 2, 4}}, true), pods);
}

TEST(Simulator, MessagesTakeOfArithmeticBesideThem) {
  Machine plain = made_machine();
  plain.flops_per_s = plain.bytes_per_s = plain.row_bytes_per_s = 3e11;
  Machine busy = plain;
  busy.between.arithmetic_s_per_byte = 4e-10;
  const auto price = [](const Machine& machine, bool overlap) {
    const Planned planned({1, 1, 1, 1}, overlap, 0.5, machine);
    return planned.pricer().price(planned.loads(1, 4), flat, {false, 0.0, false, 1});
  };
  const PassPrice before = price(plain, true), after = price(busy, true);
  EXPECT_GT(after.seconds, before.seconds);
  double moved = 0;  // between nodes, sent and received
  for (int a = 0; a < 16; ++a) {
    for (int b = 0; b < 16; ++b) {
      if (a / 4 != b / 4) moved += 2 * after.bytes[static_cast<std::size_t>(a * 16 + b)];
    }
  }
  // What all bytes take, as far as something is computed at the same time: less than on average,
  // since much waits for them.
  const double lost = after.shares.compute - before.shares.compute;
  const double beside = before.shares.compute / before.shares.wall;
  const double expected = busy.between.arithmetic_s_per_byte * moved * beside;
  EXPECT_GT(lost, 0.25 * expected);
  EXPECT_LT(lost, expected);
  // Where nothing runs beside messages, they take nothing.
  EXPECT_NEAR(price(busy, false).seconds / price(plain, false).seconds, 1, 1e-9);
}

TEST(Simulator, MergedSendersComeOutAsSingleOnesAt128Ranks) {
  Machine machine = made_machine();
  machine.num_nodes = 16;
  machine.ranks_of_node = 8;
  machine.flops_per_s = machine.bytes_per_s = machine.row_bytes_per_s = 3e11;
  const Planned planned({1, 1, 1, 1}, true, 0.5, machine, 2, 128);
  const auto loads = planned.loads(1, 1);
  const PassPrice exact = planned.pricer().price(loads, flat, {false, 0.0, false, 1});
  const PassPrice merged = planned.pricer().price(loads, flat, {true, 0.0, false, 1});
  EXPECT_LT(merged.shared, exact.shared);  // there is less to divide
  EXPECT_NEAR(merged.seconds / exact.seconds, 1, 0.05);
  EXPECT_EQ(merged.bytes, exact.bytes);
}

TEST(Simulator, RowsThereAreRowsBack) {
  const Planned planned({1, 1, 1, 1});
  const auto loads = planned.loads(1, 2);
  const double row = planned.shape().hidden * 2;
  const PassPrice price = planned.pricer().price(loads, flat, {});
  double sum = 0;
  for (int a = 0; a < 16; ++a) {
    for (int b = 0; b < 16; ++b) {
      const auto at = [&](int x, int y) {
        return price.bytes[static_cast<std::size_t>(x * 16 + y)];
      };
      EXPECT_NEAR(at(a, b), at(b, a), 1e-6);  // what goes there comes back
      sum += at(a, b);
    }
  }
  // Every token's two rows in three layers go there and back, but for those that stay.
  const double all = static_cast<double>(loads.front().rows()) * 2 * 3 * 2 * row;
  EXPECT_LT(sum, all);
  EXPECT_GT(sum, 0.8 * all);
}

TEST(Simulator, AFewLayersTellOfMany) {
  for (const Division& division : {Division{}, Division{1, 1, 4, 4}, Division{2, 1, 2, 1}}) {
    const Planned planned(division, true, 0, made_machine(), 40);
    ASSERT_TRUE(LayerSample::pays(planned.shape(), 1));
    const LayerSample sample(planned.pricer().setup());
    for (const PassForm& form : {flat, nodes}) {
      const auto loads = planned.loads(1, 2);
      const PassPrice all = planned.pricer().price(loads, form, {});
      const PassPrice some = sample.price(loads, form, {});
      EXPECT_NEAR(some.seconds / all.seconds, 1, 0.04);
      // Layers differ in what their few rows chose by chance.
      EXPECT_NEAR(some.busiest_arithmetic_s / all.busiest_arithmetic_s, 1, 0.02);
      EXPECT_NEAR(some.link_limit_s / all.link_limit_s, 1, 0.05);
    }
  }
  const Planned shallow(Division{}, true, 0, made_machine(), 12);
  EXPECT_FALSE(LayerSample::pays(shallow.shape(), 1));
}

TEST(Simulator, NoPassOfAStageTakesLessThanItsArithmetic) {
  const Planned planned({1, 4, 1, 1}, true, 0, made_machine(), 8);  // eight flights
  for (const int passes : {1, 3, 8, 9, 12, 16, 21}) {
    const PassPrice price = planned.pricer().price(planned.loads(passes, 1, 2000), flat, {});
    EXPECT_GE(price.seconds, 0.95 * price.busiest_arithmetic_s) << passes;  // passes are alike
    EXPECT_LT(price.seconds, 12 * price.busiest_arithmetic_s) << passes;
  }
}

TEST(Simulator, SaysWhoWaitsForEver) {
  class Lost final : public PassModel {
   public:
    double seconds(int, int, const Step&) const override { return 1; }
    void messages(Share, int, int, const Step&, std::vector<Message>& out) const override {
      // Its counterpart never takes part: rank 1 runs a schedule without this exchange.
      out.push_back({0, 1, 1e6, 1e6, 1});
    }
  };
  Machine machine;
  machine.num_nodes = 2;
  machine.cuda = false;
  machine.between.rank_bytes_per_s = 1e6;
  const JobGroups groups(JobLayout({1, 2, 1, 1}, {0, 1}));
  const Network network(machine, 2);
  const Lost model;
  ModelShape shape;
  shape.num_layers = 2;
  shape.layer_is_dense = {true, true};
  const Schedule first = overlapped_schedule(shape, 1, {.first_layer = 0, .end_layer = 1});
  const Schedule alone = overlapped_schedule(shape, 1, {.first_layer = 0, .end_layer = 2});
  SimulatorSetup setup;
  setup.groups = &groups;
  setup.machine = &machine;
  setup.network = &network;
  setup.model = &model;
  setup.schedules = {{&first}, {&alone}};  // the second stage receives nothing
  setup.ranks = {0, 1};
  try {
    Simulator(setup).run();
    FAIL() << "a message that nobody receives arrived";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("rank 0 never ends c0 forward"), std::string::npos)
        << error.what();
  }
}

}  // namespace
}  // namespace atl
