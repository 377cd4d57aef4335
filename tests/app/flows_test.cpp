#include "app/plan/flows.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <vector>

namespace atl {
namespace {

/// So many nodes of `ranks` each, whose ports carry 100 bytes per second inside and 10 between.
Machine machine_of(int nodes, int ranks) {
  Machine machine;
  machine.name = "a machine";
  machine.num_nodes = nodes;
  machine.ranks_of_node = ranks;
  machine.inside.rank_bytes_per_s = 100;
  machine.between.rank_bytes_per_s = 10;
  return machine;
}

struct Sent {
  double begin = 0;
  int from = 0, to = 0;
  double bytes = 0;
};

/// [messages]: when each ends.
std::vector<double> ends_of(const Network& network, const std::vector<Sent>& messages,
                            double grain) {
  Flows flows(network, grain);
  std::vector<double> ends(messages.size());
  std::vector<std::int64_t> ended;
  std::size_t next = 0;
  while (true) {
    const double begin =
        next < messages.size() ? messages[next].begin : std::numeric_limits<double>::infinity();
    const double due = flows.next();
    if (begin == due && begin == std::numeric_limits<double>::infinity()) break;
    if (due <= begin) {
      ended.clear();
      flows.advance(due, ended);
      for (const std::int64_t tag : ended) ends[static_cast<std::size_t>(tag)] = due;
      continue;
    }
    const Sent& m = messages[next];
    flows.begin(begin, network.path(m.from, m.to), m.bytes, static_cast<std::int64_t>(next++));
  }
  return ends;
}

/// The definition, event by event: rates rise alike until a link is full.
std::vector<double> ends_by_definition(const Network& network, const std::vector<Sent>& messages) {
  constexpr double never = std::numeric_limits<double>::infinity();
  std::vector<double> left, ends(messages.size(), -1);
  for (const Sent& m : messages) left.push_back(m.bytes);
  double now = 0;
  while (std::count(ends.begin(), ends.end(), -1) > 0) {
    std::vector<double> rate(messages.size(), -1);
    std::map<int, double> room;
    std::vector<std::size_t> active;
    for (std::size_t i = 0; i < messages.size(); ++i) {
      if (ends[i] >= 0 || messages[i].begin > now) continue;
      active.push_back(i);
      const auto path = network.path(messages[i].from, messages[i].to);
      for (const auto link : path.all()) {
        room[link] = network.capacity(link);
      }
    }
    const auto uses = [&](std::size_t i, int link) {
      const LinkPath path = network.path(messages[i].from, messages[i].to);
      return std::find(path.all().begin(), path.all().end(), link) != path.all().end();
    };
    for (std::size_t fixed = 0; fixed < active.size();) {
      double least = never;
      int full = -1;
      for (const auto& [link, left_of_link] : room) {
        int count = 0;
        for (const std::size_t i : active) count += rate[i] < 0 && uses(i, link) ? 1 : 0;
        if (count > 0 && left_of_link / count < least) {
          least = left_of_link / count;
          full = link;
        }
      }
      for (const std::size_t i : active) {
        if (rate[i] >= 0 || !uses(i, full)) continue;
        rate[i] = least;
        ++fixed;
        for (auto& [link, left_of_link] : room) {
          if (uses(i, link)) left_of_link -= least;
        }
      }
    }
    double next = never;
    for (const Sent& m : messages) {
      if (m.begin > now) next = std::min(next, m.begin);
    }
    for (const std::size_t i : active) next = std::min(next, now + left[i] / rate[i]);
    for (const std::size_t i : active) {
      left[i] -= rate[i] * (next - now);
      if (left[i] < 1e-9 * messages[i].bytes) ends[i] = next;
    }
    now = next;
  }
  return ends;
}

TEST(Flows, SharesAPortAndGivesBackWhatOthersCannotTake) {
  const Network network(machine_of(2, 2), 4);
  // Both leave rank 0, whose port carries 10; the second ends first and leaves all to the first.
  auto ends = ends_of(network, {{0, 0, 2, 100}, {0, 0, 3, 50}}, 0);
  EXPECT_DOUBLE_EQ(ends[1], 10);
  EXPECT_DOUBLE_EQ(ends[0], 15);
  // Three come to rank 2: 10/3 each. What rank 0 sends beside that gets the rest of its port.
  ends = ends_of(network, {{0, 0, 2, 30}, {0, 1, 2, 30}, {0, 0, 3, 100}}, 0);
  EXPECT_DOUBLE_EQ(ends[0], 6);
  EXPECT_DOUBLE_EQ(ends[1], 6);
  EXPECT_DOUBLE_EQ(ends[2], 6 + (100 - 30) / 10.0);
}

std::vector<Sent> random_messages(int ranks, int count, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> bytes(1, 1000), begin(0, 20);
  std::vector<Sent> messages;
  for (int i = 0; i < count; ++i) {
    const int from = static_cast<int>(random() % static_cast<unsigned>(ranks));
    const int to =
        (from + 1 + static_cast<int>(random() % static_cast<unsigned>(ranks - 1))) % ranks;
    messages.push_back({begin(random), from, to, bytes(random)});
  }
  std::sort(messages.begin(), messages.end(),
            [](const Sent& a, const Sent& b) { return a.begin < b.begin; });
  return messages;
}

TEST(Flows, AreTheDefinitionsForAnyMessages) {
  Machine machine = machine_of(4, 2);
  machine.levels = {{"leaf", 2, 3.0}};
  for (const bool rails : {false, true}) {
    machine.rails = rails;
    const Network network(machine, 8);
    for (unsigned seed = 0; seed < 20; ++seed) {
      const auto messages = random_messages(8, 40, seed);
      const auto expected = ends_by_definition(network, messages);
      const auto found = ends_of(network, messages, 0);
      for (std::size_t i = 0; i < messages.size(); ++i) {
        EXPECT_NEAR(found[i], expected[i], 1e-6) << "seed " << seed << ", message " << i;
      }
    }
  }
}

// A message waits for others that begin within a grain of what it would take alone, and its rate is
// not worked out anew for ends within a grain of others' time; messages behind it inherit that.
TEST(Flows, AGrainMovesEndsLittle) {
  constexpr double grain = 0.01;
  const Network network(machine_of(4, 2), 8);
  double exact_last = 0, grained_last = 0, ends = 0, moved = 0;
  for (unsigned seed = 0; seed < 20; ++seed) {
    const auto messages = random_messages(8, 60, seed);
    const auto exact = ends_of(network, messages, 0);
    const auto grained = ends_of(network, messages, grain);
    exact_last += *std::max_element(exact.begin(), exact.end());
    grained_last += *std::max_element(grained.begin(), grained.end());
    for (std::size_t i = 0; i < messages.size(); ++i) {
      ends += exact[i];
      moved += std::abs(grained[i] - exact[i]);
    }
  }
  EXPECT_NEAR(grained_last / exact_last, 1, 2 * grain);
  EXPECT_LT(moved / ends, 2 * grain);
}

TEST(Network, TopologyDecidesWhatIsShared) {
  Machine machine = machine_of(4, 2);
  const auto last = [&](const std::vector<Sent>& messages) {
    const auto ends = ends_of(Network(machine, 8), messages, 0);
    return *std::max_element(ends.begin(), ends.end());
  };
  const std::vector<Sent> apart = {{0, 0, 4, 100}, {0, 1, 5, 100}, {0, 2, 6, 100}, {0, 3, 7, 100}};
  EXPECT_DOUBLE_EQ(last(apart), 10);  // a full tree
  machine.levels = {{"leaf", 2, 4.0}};
  EXPECT_DOUBLE_EQ(last(apart), 40);  // two nodes send 4 x 10 over an uplink of 10
  machine.rails = true;
  EXPECT_DOUBLE_EQ(last(apart), 40);  // each rail has half of both
  machine.levels = {};
  machine.rails = false;
  machine.fabric = Fabric::mesh;
  machine.link_bytes_per_s = 5;
  EXPECT_DOUBLE_EQ(last(apart), 40);  // 2 x 100 over the one link between two nodes
  machine.fabric = Fabric::dragonfly;
  machine.nodes_of_group = 2;
  EXPECT_DOUBLE_EQ(last(apart), 80);  // all over the one link between two groups
  machine.fabric = Fabric::tree;
  machine.speeds = {{1, 2, 1.0, 0.5}};
  EXPECT_DOUBLE_EQ(last(apart), 20);  // one slow port
  machine.speeds = {};
  machine.between.node_bytes_per_s = 10;
  EXPECT_DOUBLE_EQ(last(apart), 20);  // one card for both ranks of a node
}

}  // namespace
}  // namespace atl
