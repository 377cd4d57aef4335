// The router's choices, counts and places against a plain loop over tokens.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <set>

#include "tests/cuda/routed.hpp"
#include "tests/reference.hpp"

namespace atl::testing {
namespace {

struct Routed {
  std::vector<std::int32_t> experts;
  std::vector<float> weights;
  std::vector<std::int32_t> slots;
  std::vector<std::int32_t> counts;
};

class CudaRouter : public ::testing::Test {
 protected:
  void SetUp() override { skip_without_device(); }

  /// With `forced` its experts are given, and its weights too where it has them.
  static Routed route(const std::vector<float>& logits, const std::vector<std::int32_t>& order,
                      int top_k, bool renormalise, const Routed& forced = {}) {
    const RoutedOnDevice routed(logits, places_in_order(order), top_k, renormalise, false,
                                {forced.experts, forced.weights});
    std::vector<std::int32_t> counts = routed.counts.host();
    counts.resize(order.size());  // one node's are not counted
    return {routed.experts.host(), routed.weights.host(), routed.slots.host(), counts};
  }

  /// Experts in reverse order of sending, in groups of three: no expert is at its own place.
  static std::vector<std::int32_t> mixed_order(int experts) {
    std::vector<std::int32_t> order(static_cast<std::size_t>(experts));
    std::iota(order.begin(), order.end(), 0);
    std::mt19937 generator(11);
    std::shuffle(order.begin(), order.end(), generator);
    return order;
  }

  std::vector<float> random_logits(int tokens, int experts, bool ties) {
    std::normal_distribution<float> normal(0, 2);
    std::vector<float> logits(static_cast<std::size_t>(tokens * experts));
    // Few distinct values make ties in every row.
    for (float& x : logits) x = ties ? std::round(normal(generator_)) : normal(generator_);
    return logits;
  }

  static void expect_routed(const Routed& got, const std::vector<float>& logits,
                            const std::vector<std::int32_t>& order, int top_k, bool renormalise) {
    const std::size_t experts = order.size();
    const std::size_t tokens = logits.size() / experts;
    ModelShape shape;
    shape.top_k = top_k;
    shape.norm_topk_prob = renormalise;
    std::vector<std::int32_t> counts(experts, 0);
    for (std::size_t t = 0; t < tokens; ++t) {
      reference::Matrix router;
      for (std::size_t e = 0; e < experts; ++e) router.push_back({logits[t * experts + e]});
      const auto wanted = reference::route(router, {1.0}, shape);
      for (std::size_t j = 0; j < wanted.size(); ++j) {
        const std::size_t at = t * wanted.size() + j;
        ASSERT_EQ(got.experts[at], wanted[j].expert) << "token " << t << " choice " << j;
        ASSERT_NEAR(got.weights[at], wanted[j].weight, 1e-6);
        ++counts[static_cast<std::size_t>(order[static_cast<std::size_t>(wanted[j].expert)])];
      }
    }
    EXPECT_EQ(got.counts, counts);
    std::vector<std::int32_t> next(experts, 0);
    std::exclusive_scan(counts.begin(), counts.end(), next.begin(), 0);
    for (std::size_t i = 0; i < got.slots.size(); ++i) {
      const auto expert = static_cast<std::size_t>(got.experts[i]);
      ASSERT_EQ(got.slots[i], next[static_cast<std::size_t>(order[expert])]++) << "pair " << i;
    }
  }

  std::mt19937 generator_{5};
};

TEST_F(CudaRouter, ChoosesCountsAndPlaces) {
  for (const int experts : {1, 5, 16, 33, 64, 100, 512}) {
    for (const int tokens : {1, 17, 100}) {
      for (const bool ties : {false, true}) {
        const int top_k = std::min(experts, ties ? 16 : 2);
        const auto logits = random_logits(tokens, experts, ties);
        const auto order = mixed_order(experts);
        const Routed got = route(logits, order, top_k, ties);
        SCOPED_TRACE(::testing::Message() << experts << " experts, " << tokens << " tokens");
        expect_routed(got, logits, order, top_k, ties);
      }
    }
  }
}

TEST_F(CudaRouter, ManyTokensPerTile) {
  // More tokens than tiles of 16: a warp then takes several, one after another.
  const auto logits = random_logits(2500, 6, false);
  const auto order = mixed_order(6);
  expect_routed(route(logits, order, 2, true), logits, order, 2, true);
}

TEST_F(CudaRouter, NoTokensCountNothing) {
  EXPECT_EQ(route({}, mixed_order(7), 2, true).counts, std::vector<std::int32_t>(7, 0));
}

TEST_F(CudaRouter, ChoosesDifferentExpertsWhateverTheLogits) {
  constexpr float infinite = std::numeric_limits<float>::infinity();
  constexpr float nan = std::numeric_limits<float>::quiet_NaN();
  for (const int experts : {5, 33, 100}) {
    for (const float bad : {nan, -nan, infinite, -infinite}) {
      auto logits = random_logits(3, experts, false);
      const auto order = mixed_order(experts);
      const Routed clean = route(logits, order, 4, true);
      logits[static_cast<std::size_t>(experts + 2)] = bad;  // of token 1
      const Routed got = route(logits, order, 4, true);
      EXPECT_EQ(std::accumulate(got.counts.begin(), got.counts.end(), 0), 12);
      for (std::size_t i = 0; i < 12; ++i) {
        const bool of_it = i / 4 == 1;
        if (of_it && bad != -infinite) {
          EXPECT_EQ(got.experts[i], static_cast<int>(i % 4));
          EXPECT_TRUE(std::isnan(got.weights[i]));
        } else if (of_it) {
          EXPECT_NE(got.experts[i], 2);
          EXPECT_TRUE(std::isfinite(got.weights[i]));
        } else {
          EXPECT_EQ(got.experts[i], clean.experts[i]);
          EXPECT_EQ(got.weights[i], clean.weights[i]);
        }
      }
      // Every pair has a row of its own.
      std::set<std::int32_t> rows(got.slots.begin(), got.slots.end());
      EXPECT_EQ(rows.size(), 12U);
      EXPECT_EQ(*rows.rbegin(), 11);
    }
  }
}

TEST_F(CudaRouter, FollowsChoicesThatAreGiven) {
  for (const int experts : {5, 33, 64, 100, 512}) {
    const auto logits = random_logits(50, experts, false);
    const auto order = mixed_order(experts);
    SCOPED_TRACE(::testing::Message() << experts << " experts");
    // Its own choices get the same weights, bit by bit, and the same rows.
    const Routed own = route(logits, order, 4, true);
    Routed given{own.experts, {}, {}, {}};
    const Routed again = route(logits, order, 4, true, given);
    EXPECT_EQ(again.experts, own.experts);
    EXPECT_EQ(again.weights, own.weights);
    EXPECT_EQ(again.slots, own.slots);
    EXPECT_EQ(again.counts, own.counts);
    // Others: every token's neighbours of its own, in falling order of their number.
    for (std::size_t t = 0; t < 50; ++t) {
      for (int j = 0; j < 4; ++j) {
        given.experts[t * 4 + static_cast<std::size_t>(j)] =
            (static_cast<int>(t) + 4 - j) % experts;
      }
    }
    const Routed forced = route(logits, order, 4, true, given);
    EXPECT_EQ(forced.experts, given.experts);
    ModelShape shape;
    for (std::size_t t = 0; t < 50; ++t) {
      reference::Matrix router;
      for (int e = 0; e < experts; ++e) {
        router.push_back(
            {logits[t * static_cast<std::size_t>(experts) + static_cast<std::size_t>(e)]});
      }
      reference::Choices choices;
      for (std::size_t j = 0; j < 4; ++j) choices.push_back({given.experts[t * 4 + j], 0});
      choices = reference::route_forced(router, {1.0}, shape, choices);
      for (std::size_t j = 0; j < 4; ++j) {
        ASSERT_NEAR(forced.weights[t * 4 + j], choices[j].weight, 1e-6) << "token " << t;
      }
    }
    given.weights.assign(200, 0.3F);
    const Routed weighted = route(logits, order, 4, true, given);
    EXPECT_EQ(weighted.weights, given.weights);
    EXPECT_EQ(weighted.slots, forced.slots);
    EXPECT_EQ(weighted.counts, forced.counts);
  }
}

TEST_F(CudaRouter, ATokensWeightsDoNotDependOnOtherTokens) {
  const int experts = 37;
  const auto logits = random_logits(40, experts, false);
  const auto order = mixed_order(experts);
  const Routed all = route(logits, order, 4, true);
  for (const int t : {0, 21, 39}) {
    const std::vector<float> alone(logits.begin() + t * experts,
                                   logits.begin() + (t + 1) * experts);
    const Routed one = route(alone, order, 4, true);
    for (int j = 0; j < 4; ++j) {
      EXPECT_EQ(one.weights[static_cast<std::size_t>(j)],
                all.weights[static_cast<std::size_t>(t * 4 + j)]);
    }
  }
}

/// What of one token's choices goes to nodes, by plain loops.
struct PlainNodes {
  PlainNodes(const compute::ExpertPlaces& places, const std::vector<std::int32_t>& chosen,
             std::size_t num_tokens, std::size_t top_k)
      : rows(static_cast<std::size_t>(places.num_nodes()), 0),
        returns(rows),
        counts(places.replicas.size(), 0) {
    for (std::size_t t = 0; t < num_tokens; ++t) {
      std::set<std::int32_t> nodes;
      for (std::size_t j = 0; j < top_k; ++j) {
        const auto& replica = replica_of(places, chosen[t * top_k + j]);
        nodes.insert(replica.node);
        ++counts[static_cast<std::size_t>(replica.place)];
      }
      for (const std::int32_t node : nodes) ++rows[static_cast<std::size_t>(node)];
      for (std::size_t j = 0; j < top_k; ++j) {
        if (nodes.size() == 1 && j > 0) continue;
        const auto& replica = replica_of(places, chosen[t * top_k + j]);
        ++returns[static_cast<std::size_t>(replica.node)];
      }
    }
  }
  static const compute::ReplicaPlace& replica_of(const compute::ExpertPlaces& places,
                                                 std::int32_t chosen) {
    return places.replicas[static_cast<std::size_t>(chosen)];
  }

  std::vector<std::int32_t> rows, returns, counts;
};

std::vector<std::int32_t> starts_of(const std::vector<std::int32_t>& counts) {
  std::vector<std::int32_t> starts(counts.size());
  std::exclusive_scan(counts.begin(), counts.end(), starts.begin(), 0);
  return starts;
}

class CudaRouterOfNodes : public CudaRouter {
 protected:
  void expect_routed_to_nodes(const compute::ExpertPlaces& places, int tokens, int top_k,
                              bool for_nodes) {
    const auto experts = static_cast<int>(places.first_of_expert.size()) - 1;
    const RoutedOnDevice got(random_logits(tokens, experts, false), places, top_k, true, for_nodes);
    const auto k = static_cast<std::size_t>(top_k);
    const auto chosen = got.chosen.host();
    std::vector<std::int32_t> wanted(chosen.size());
    const auto of_experts = got.experts.host();
    for (std::size_t t = 0; t < got.tokens; ++t) {
      compute::choose_replicas(places.table(), of_experts.data() + t * k, top_k,
                               static_cast<int>(t), wanted.data() + t * k);
    }
    ASSERT_EQ(chosen, wanted);
    const PlainNodes plain(places, chosen, got.tokens, k);
    std::vector<std::int32_t> counts = plain.counts;
    if (for_nodes || places.num_nodes() > 1) {
      counts.insert(counts.end(), plain.rows.begin(), plain.rows.end());
      counts.insert(counts.end(), plain.returns.begin(), plain.returns.end());
    }
    auto got_counts = got.counts.host();
    got_counts.resize(counts.size());
    ASSERT_EQ(got_counts, counts);
    if (for_nodes) {
      expect_rows_of_nodes(places, got, plain, k);
      return;
    }
    std::vector<std::int32_t> next = starts_of(plain.counts);
    const auto slots = got.slots.host();
    for (std::size_t i = 0; i < slots.size(); ++i) {
      const auto& replica = PlainNodes::replica_of(places, chosen[i]);
      ASSERT_EQ(slots[i], next[static_cast<std::size_t>(replica.place)]++) << "pair " << i;
    }
  }

 private:
  static void expect_rows_of_nodes(const compute::ExpertPlaces& places, const RoutedOnDevice& got,
                                   const PlainNodes& plain, std::size_t k) {
    std::vector<std::int32_t> next_row = starts_of(plain.rows);
    std::vector<std::int32_t> next_return = starts_of(plain.returns);
    const auto chosen = got.chosen.host();
    const auto sent = got.sent.host();
    const auto slots = got.slots.host();
    for (std::size_t t = 0; t < got.tokens; ++t) {
      std::map<std::int32_t, std::int32_t> row_of_node;
      for (std::size_t j = 0; j < k; ++j) {
        const std::int32_t node = PlainNodes::replica_of(places, chosen[t * k + j]).node;
        if (row_of_node.count(node) == 0) {
          row_of_node[node] = next_row[static_cast<std::size_t>(node)]++;
        }
      }
      for (std::size_t j = 0; j < k; ++j) {
        const std::int32_t node = PlainNodes::replica_of(places, chosen[t * k + j]).node;
        ASSERT_EQ(sent[t * k + j], row_of_node[node]) << "token " << t << " choice " << j;
        const bool counted = row_of_node.size() > 1 || j == 0;
        const std::int32_t slot = counted ? next_return[static_cast<std::size_t>(node)]++ : -1;
        ASSERT_EQ(slots[t * k + j], slot) << "token " << t << " choice " << j;
      }
    }
  }
};

TEST_F(CudaRouterOfNodes, CountsAndPlacesReplicasAndNodes) {
  unsigned seed = 0;
  for (const int nodes : {1, 2, 5}) {
    for (int top_k = 1; top_k <= 8; ++top_k) {
      for (const int most : {1, 3}) {
        for (const bool for_nodes : {false, true}) {
          SCOPED_TRACE(::testing::Message()
                       << nodes << " nodes, top " << top_k << ", up to " << most << " replicas"
                       << (for_nodes ? ", to nodes" : ""));
          const int experts = top_k + static_cast<int>(seed % 30);
          expect_routed_to_nodes(random_places(experts, nodes, most, ++seed), 1 + top_k * 11, top_k,
                                 for_nodes);
        }
      }
    }
  }
}

TEST_F(CudaRouterOfNodes, ManyTokensPlacesAndNodes) {
  expect_routed_to_nodes(random_places(6, 3, 3, 1), 2500, 3, true);
  // More groups than threads: 300 experts, about 900 replicas, 200 nodes.
  for (const bool for_nodes : {false, true}) {
    expect_routed_to_nodes(random_places(300, 200, 5, 2), 70, 4, for_nodes);
  }
}

TEST_F(CudaRouterOfNodes, NoTokensCountNothing) {
  for (const bool for_nodes : {false, true}) {
    expect_routed_to_nodes(random_places(7, 3, 2, 4), 0, 2, for_nodes);
  }
}

}  // namespace
}  // namespace atl::testing
