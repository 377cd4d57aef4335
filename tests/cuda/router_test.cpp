// The router's choices, counts and places against a plain loop over tokens.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <set>

#include "compute/cuda/kernels.hpp"
#include "compute/cuda/plan/workspace.hpp"
#include "tests/cuda/device_memory.hpp"
#include "tests/reference.hpp"

namespace atl::testing {
namespace {

namespace cuda = compute::cuda;

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
    const int experts = static_cast<int>(order.size());
    const auto tokens = logits.size() / order.size();
    const auto pairs = tokens * static_cast<std::size_t>(top_k);
    const DeviceArray<float> device_logits(logits);
    const DeviceArray<std::int32_t> send_order(order);
    const auto chosen = forced.experts.empty() ? DeviceArray<std::int32_t>(pairs)
                                               : DeviceArray<std::int32_t>(forced.experts);
    const auto weights =
        forced.weights.empty() ? DeviceArray<float>(pairs) : DeviceArray<float>(forced.weights);
    const DeviceArray<std::int32_t> slots(pairs);
    const DeviceArray<std::int32_t> counts(order.size());
    const DeviceArray<std::int32_t> scratch(
        static_cast<std::size_t>(cuda::route_scratch_ints(experts)));
    cuda::RouteArgs args;
    args.logits = device_logits.get();
    args.send_order = send_order.get();
    args.num_tokens = static_cast<int>(tokens);
    args.num_experts = experts;
    args.top_k = top_k;
    args.renormalise = renormalise;
    args.forced = !forced.experts.empty();
    args.forced_weights = !forced.weights.empty();
    args.experts = chosen.get();
    args.weights = weights.get();
    args.slots = slots.get();
    args.counts = counts.get();
    args.scratch = scratch.get();
    cuda::route(nullptr, args);
    return {chosen.host(), weights.host(), slots.host(), counts.host()};
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

}  // namespace
}  // namespace atl::testing
