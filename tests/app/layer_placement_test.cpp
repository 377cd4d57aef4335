#include "app/plan/layer_placement.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <set>

#include "app/plan/placement.hpp"
#include "app/run/place.hpp"
#include "compute/error.hpp"
#include "tests/app/plan_shapes.hpp"
#include "tests/app/skewed_choices.hpp"

namespace atl {
namespace {

struct Case {
  std::vector<int> node_of;
  int experts;
  int top_k;
  int slots;
};

std::vector<int> nodes(const std::vector<int>& sizes) {
  std::vector<int> node_of;
  for (std::size_t n = 0; n < sizes.size(); ++n)
    node_of.insert(node_of.end(), static_cast<std::size_t>(sizes[n]), static_cast<int>(n));
  return node_of;
}

/// Equal and uneven nodes; one expert a rank, several, room to spare, replicas.
std::vector<Case> cases() {
  return {{nodes({4, 4, 4, 4}), 16, 2, 0}, {nodes({8, 8, 8}), 24, 4, 0},
          {nodes({2, 2}), 8, 2, 2},        {nodes({3, 5, 1}), 20, 3, 0},
          {nodes({4, 4}), 21, 2, 0},       {nodes({1, 1, 1, 1}), 20, 5, 0},
          {nodes({6}), 12, 2, 0},          {nodes({4, 4, 4}), 8, 2, 0},
          {nodes({2, 2, 2}), 16, 2, 4},    {nodes({3, 1, 2}), 10, 3, 3},
          {nodes({2, 2}), 6, 2, 6},        {nodes({4, 4, 4, 4}), 16, 1, 2},
          {nodes({1, 1, 1}), 5, 2, 4},     {nodes({2, 3}), 4, 4, 2}};
}

PlacementRules rules_of(const Case& of, Route route) {
  PlacementRules rules;
  rules.layout = make_layout(of.node_of);
  rules.slots = of.slots;
  rules.route = route;
  rules.work = 3000000;
  return rules;
}

std::string named(const Case& of, Route route) {
  return fmt::format("{} experts, top-{}, {} slots, {} ranks, route {}", of.experts, of.top_k,
                     of.slots, of.node_of.size(), static_cast<int>(route));
}

void expect_kept(const RanksOfExpert& ranks, const Case& of, const PlacementRules& rules) {
  ModelShape shape = shape_with(1, 0);
  shape.num_experts = of.experts;
  EXPECT_NO_THROW(explicit_placement(shape, rules.layout, {ranks}));
  std::vector<int> here(of.node_of.size());
  for (const auto& holders : ranks) {
    for (const int rank : holders) ++here[static_cast<std::size_t>(rank)];
  }
  const std::vector<int> seats = seats_of(of.experts, rules);
  const bool all_taken = has_replicas(of.experts, rules);
  for (std::size_t r = 0; r < here.size(); ++r) {
    EXPECT_LE(here[r], seats[r]);
    if (all_taken) {
      EXPECT_EQ(here[r], seats[r]);
    }
  }
}

TEST(LayerPlacement, IsBetweenItsBoundAndContiguousOrder) {
  unsigned seed = 0;
  for (const Case& of : cases()) {
    for (const Route route : {Route::nodes, Route::flat}) {
      SCOPED_TRACE(named(of, route));
      const PlacementRules rules = rules_of(of, route);
      const ExpertChoices choices = skewed_choices(of.experts, of.top_k, 500, ++seed);
      const RanksOfExpert found = place_layer(choices, rules);
      expect_kept(found, of, rules);
      EXPECT_EQ(found, place_layer(choices, rules));
      const LayerLoads placed = loads_of(choices, found, rules.layout, route);
      const LayerLoads contiguous =
          loads_of(choices, contiguous_order(of.experts, rules), rules.layout, route);
      EXPECT_LE(placed.link, contiguous.link);
      const LayerBounds bounds = bounds_of(choices, rules, placed);
      constexpr double rounding = 1 + 1e-9;
      EXPECT_LE(bounds.link.busiest, placed.link * rounding);
      EXPECT_LE(bounds.node.busiest, placed.node * rounding);
      EXPECT_LE(bounds.rank, placed.rank * rounding);
      EXPECT_GT(bounds.rank, 0);
      EXPECT_GT(bounds.node.busiest, 0);
    }
  }
}

TEST(LayerPlacement, BoundsHoldForAnyPlacement) {
  // Also for ones that no search would make, with all replicas that there is room for.
  std::mt19937 random(3);
  for (const Case& of : cases()) {
    const PlacementRules rules = rules_of(of, Route::nodes);
    const ExpertChoices choices = skewed_choices(of.experts, of.top_k, 300, 17);
    const LayerBounds bounds = bounds_of(choices, rules, {1e9, 1e9, 1e9});
    std::vector<std::int64_t> made(static_cast<std::size_t>(of.experts));
    for (int i = 0; i < 20; ++i) {
      for (auto& load : made) load = random() % 100;
      const RanksOfExpert ranks = place_by_loads(made, rules);
      expect_kept(ranks, of, rules);
      const LayerLoads loads = loads_of(choices, ranks, rules.layout, Route::nodes);
      EXPECT_LE(bounds.link.busiest, loads.link * (1 + 1e-9)) << named(of, Route::nodes);
      EXPECT_LE(bounds.node.busiest, loads.node * (1 + 1e-9)) << named(of, Route::nodes);
      EXPECT_LE(bounds.rank, loads.rank * (1 + 1e-9)) << named(of, Route::nodes);
    }
  }
}

/// Of all placements of `experts` on two nodes of one rank with `slots` places each.
double least_link(const ExpertChoices& choices, int experts, int slots,
                  const PlacementRules& rules) {
  double least = 1e30;
  const auto places = [&](unsigned set) { return __builtin_popcount(set) == slots; };
  for (unsigned first = 0; first < 1U << experts; ++first) {
    for (unsigned second = 0; places(first) && second < 1U << experts; ++second) {
      if (!places(second) || (first | second) != (1U << experts) - 1) continue;
      RanksOfExpert ranks(static_cast<std::size_t>(experts));
      for (std::size_t e = 0; e < ranks.size(); ++e) {
        if ((first >> e & 1) != 0) ranks[e].push_back(0);
        if ((second >> e & 1) != 0) ranks[e].push_back(1);
      }
      least = std::min(least, loads_of(choices, ranks, rules.layout, rules.route).link);
    }
  }
  return least;
}

TEST(LayerPlacement, FewReplicasArePlacedAsWellAsCanBe) {
  for (const std::uint32_t seed : {5U, 6U, 7U, 8U}) {
    const Case of{nodes({1, 1}), 6, 2, 4};
    const PlacementRules rules = rules_of(of, Route::nodes);
    const ExpertChoices choices = skewed_choices(6, 2, 500, seed);
    const double placed =
        loads_of(choices, place_layer(choices, rules), rules.layout, rules.route).link;
    const double least = least_link(choices, 6, 4, rules);
    EXPECT_NEAR(placed, least, 1e-9 * least) << seed;
    EXPECT_LT(placed,
              loads_of(choices, contiguous_order(6, rules), rules.layout, rules.route).link);
  }
}

TEST(LayerPlacement, FewExpertsArePlacedExactly) {
  const Case of{nodes({4, 4, 4, 4}), 16, 2, 0};
  const PlacementRules rules = rules_of(of, Route::nodes);
  const ExpertChoices choices = skewed_choices(16, 2, 500, 5);
  const LayerLoads placed =
      loads_of(choices, place_layer(choices, rules), rules.layout, rules.route);
  const LayerBounds bounds = bounds_of(choices, rules, placed);
  EXPECT_EQ(bounds.link.limit, Limit::exact);
  EXPECT_NEAR(bounds.link.busiest, placed.link, 1e-9 * placed.link);
}

TEST(NodeCosts, CountWhatTravels) {
  // Two nodes with two ranks each; expert e on rank e. Experts 0 and 1 share a node.
  const Layout layout = make_layout({0, 0, 1, 1});
  const RanksOfExpert ranks = {{0}, {1}, {2}, {3}};
  const ExpertChoices choices{4, 2, {0, 1, /**/ 0, 2, /**/ 0, 3}};
  const LayerLoads nodes = loads_of(choices, ranks, layout, Route::nodes);
  EXPECT_EQ(nodes.node, 3);
  EXPECT_EQ(nodes.rank, 3);
  EXPECT_EQ(nodes.link, 3);  // half of 3 rows there, and of 3 back: the first token's are added up
  const LayerLoads flat = loads_of(choices, ranks, layout, Route::flat);
  EXPECT_EQ(flat.node, 4);
  EXPECT_EQ(flat.link, 4);
  EXPECT_EQ(rows_there_and_back(Route::nodes, 3), (NodeCost{0, 2, 3, 2}));
  EXPECT_EQ(rows_there_and_back(Route::flat, 3), (NodeCost{0, 2, 4, 6}));
}

TEST(NodeCosts, ReplicasAreChosenAsTheProgramDoes) {
  // Expert 0 is on both nodes: it never makes a token go anywhere.
  const Layout layout = make_layout({0, 1});
  const ExpertChoices choices{2, 1, {0, 0, 0, 0, 0, 0, 0, 1}};
  const LayerLoads loads = loads_of(choices, {{0, 1}, {1}}, layout, Route::nodes);
  EXPECT_DOUBLE_EQ(loads.link, 1);  // half of one row, there and back
  EXPECT_DOUBLE_EQ(loads.rank, 4.5);
}

TEST(Replicas, LargestLoadIsTheLeastPossible) {
  std::mt19937 random(9);
  for (int i = 0; i < 50; ++i) {
    std::vector<std::int64_t> loads(4);
    for (auto& load : loads) load = 1 + random() % 60;
    const int seats = 4 + static_cast<int>(random() % 6);
    const int most = 3;
    double least = 1e9;
    for (int a = 1; a <= most; ++a) {
      for (int b = 1; b <= most; ++b) {
        for (int c = 1; c <= most; ++c) {
          const int d = seats - a - b - c;
          if (d < 1 || d > most) continue;
          const std::vector<int> r = {a, b, c, d};
          double largest = 0;
          for (std::size_t e = 0; e < 4; ++e)
            largest = std::max(largest, static_cast<double>(loads[e]) / r[e]);
          least = std::min(least, largest);
        }
      }
    }
    const std::vector<int> found = replicas_by_load(loads, seats, most);
    EXPECT_EQ(std::accumulate(found.begin(), found.end(), 0), seats);
    EXPECT_LE(*std::max_element(found.begin(), found.end()), most);
    double largest = 0;
    for (std::size_t e = 0; e < 4; ++e)
      largest = std::max(largest, static_cast<double>(loads[e]) / found[e]);
    EXPECT_DOUBLE_EQ(largest, least);
  }
}

TEST(PlaceLayers, AreTheSameForAnyNumberOfThreads) {
  RoutingSample sample;
  for (int layer = 0; layer < 5; ++layer) {
    sample.layers.push_back(layer);
    sample.made_from.push_back(skewed_choices(24, 2, 400, static_cast<unsigned>(layer)));
    sample.held_out.push_back(skewed_choices(24, 2, 400, static_cast<unsigned>(layer + 50)));
  }
  PlacementRules rules;
  rules.layout = make_layout(nodes({8, 8, 8}));
  rules.work = 2000000;
  const auto one = place_layers(sample, rules, 1);
  const auto three = place_layers(sample, rules, 3);
  std::set<RanksOfExpert> different;
  for (std::size_t i = 0; i < one.size(); ++i) {
    EXPECT_EQ(one[i].ranks_of_expert, three[i].ranks_of_expert);
    EXPECT_EQ(one[i].made_from.bounds.link.busiest, three[i].made_from.bounds.link.busiest);
    EXPECT_EQ(one[i].held_out.placed.link, three[i].held_out.placed.link);
    different.insert(one[i].ranks_of_expert);
  }
  EXPECT_EQ(different.size(), 5U);
}

TEST(PlacementRules, RefuseTooFewSeats) {
  PlacementRules rules = rules_of({nodes({2, 2}), 8, 2, 1}, Route::nodes);
  EXPECT_THROW(seats_of(8, rules), Error);
  rules.slots = 9;
  EXPECT_THROW(seats_of(8, rules), Error);
}

}  // namespace
}  // namespace atl
