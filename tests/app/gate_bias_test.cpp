#include "app/plan/gate_bias.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

namespace atl {
namespace {

constexpr int num_experts = 16, top_k = 2;

/// Probabilities of a router under which some experts are much more popular than others.
std::vector<std::vector<double>> router_scores(int num_tokens, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  std::vector<double> popularity(num_experts);
  for (double& p : popularity) p = 0.8 * normal(random);
  std::vector<std::vector<double>> scores(static_cast<std::size_t>(num_tokens));
  for (auto& token : scores) {
    for (int e = 0; e < num_experts; ++e) {
      token.push_back(std::exp(popularity[static_cast<std::size_t>(e)] + 1.2 * normal(random)));
    }
    const double sum = std::accumulate(token.begin(), token.end(), 0.0);
    for (double& p : token) p /= sum;
  }
  return scores;
}

struct Outcome {
  std::vector<std::int64_t> counts;
  double mass = 0;   // of what was chosen
  double value = 0;  // the same with the prices of experts

  double busiest() const {
    return static_cast<double>(*std::max_element(counts.begin(), counts.end())) * num_experts /
           static_cast<double>(std::accumulate(counts.begin(), counts.end(), std::int64_t{0}));
  }
};

template <class Offset>
Outcome choose(const std::vector<std::vector<double>>& scores, const Offset& offset) {
  Outcome outcome;
  outcome.counts.resize(num_experts);
  std::vector<int> order(num_experts);
  for (const auto& token : scores) {
    const auto value = [&](int e) { return token[static_cast<std::size_t>(e)] + offset(e); };
    std::iota(order.begin(), order.end(), 0);
    std::partial_sort(order.begin(), order.begin() + top_k, order.end(),
                      [&](int a, int b) { return value(a) > value(b); });
    for (int j = 0; j < top_k; ++j) {
      const int e = order[static_cast<std::size_t>(j)];
      ++outcome.counts[static_cast<std::size_t>(e)];
      outcome.mass += token[static_cast<std::size_t>(e)];
      outcome.value += value(e);
    }
  }
  return outcome;
}

/// No assignment of top_k experts to each token, none of them with more than `most` tokens, has
/// more router mass than this: any prices make a bound, and the best of a descent is close to the
/// least, which by duality is the transport problem's optimum.
double most_mass(const std::vector<std::vector<double>>& scores, double most) {
  std::vector<double> prices(num_experts);
  double best = 1e300;
  for (int step = 1; step <= 150; ++step) {
    const Outcome now = choose(scores, [&](int e) { return -prices[static_cast<std::size_t>(e)]; });
    best = std::min(best, now.value + most * std::accumulate(prices.begin(), prices.end(), 0.0));
    for (std::size_t e = 0; e < prices.size(); ++e) {
      const double over = static_cast<double>(now.counts[e]) / most - 1;
      prices[e] = std::max(0.0, prices[e] + 0.3 / step * over);
    }
  }
  return best;
}

TEST(GateBias, LittleMoreRouterMassIsGivenUpThanABoundOnTheBusiestCosts) {
  const auto scores = router_scores(8000, 7);
  const Outcome own = choose(scores, [](int) { return 0.0; });
  ASSERT_GT(own.busiest(), 1.9);
  for (const double above : {1.1, 1.2, 1.35, 1.5, 1.7}) {
    BiasOptions options;
    options.max_bias = 0.5;
    GateBias bias(1, num_experts, above, options);
    Outcome now = own;
    for (int block = 0; block < 80; ++block) {
      const auto offsets = bias.offsets(bias.blocks());
      now = choose(scores, [&](int e) { return double{offsets[static_cast<std::size_t>(e)]}; });
      bias.add_block(now.counts);
      bias.forget_before(bias.blocks());
    }
    const double tokens = static_cast<double>(scores.size());
    const double least = own.mass - most_mass(scores, now.busiest() * tokens * top_k / num_experts);
    std::printf("above %.2f: busiest %.3f instead of %.3f, given up %.5f a token, at least %.5f\n",
                above, now.busiest(), own.busiest(), (own.mass - now.mass) / tokens,
                least / tokens);
    EXPECT_LT(now.busiest(), above * 1.08);
    EXPECT_GT(least, 0);
    EXPECT_LT(own.mass - now.mass, 1.2 * least) << above;
  }
}

TEST(GateBias, OffsetsStayInTheirBoundAndAddUpToZero) {
  BiasOptions options;
  options.max_bias = 0.01;
  GateBias bias(2, 4, 1.0, options);
  for (int block = 0; block < 200; ++block) {
    bias.add_block(std::vector<std::int64_t>{1000, 10, 10, 10, 5, 5, 5, 5});
  }
  const auto offsets = bias.offsets(bias.blocks());
  EXPECT_NEAR(offsets[0] - offsets[1], -0.01, 1e-6);
  for (const std::size_t layer : {0U, 1U}) {
    double sum = 0;
    for (std::size_t e = 0; e < 4; ++e) sum += double{offsets[4 * layer + e]};
    EXPECT_NEAR(sum, 0, 1e-7);
  }
  EXPECT_LE(bias.largest(), 0.01);
  for (std::size_t e = 4; e < 8; ++e) EXPECT_EQ(offsets[e], 0.0F);  // nothing is hot there
}

TEST(GateBias, TheFirstTwoBlocksHaveNoneAndEachFollowsFromTheSecondBefore) {
  GateBias bias(1, 2, 1.0, {});
  bias.add_block(std::vector<std::int64_t>{900, 100});
  for (const std::int64_t block : {0, 1}) {
    for (const float offset : bias.offsets(block)) EXPECT_EQ(offset, 0.0F);
  }
  EXPECT_LT(bias.offsets(2)[0], 0.0F);
  const std::vector<float> before(bias.offsets(2).begin(), bias.offsets(2).end());
  bias.add_block(std::vector<std::int64_t>{100, 900});
  EXPECT_EQ(before, std::vector<float>(bias.offsets(2).begin(), bias.offsets(2).end()));
  bias.forget_before(2);
  EXPECT_ANY_THROW(bias.offsets(1));
  EXPECT_ANY_THROW(bias.offsets(4));
}

TEST(GateBias, TooMuchDriftHoldsOffsets) {
  BiasOptions options;
  options.max_drift = 0.1;
  GateBias bias(1, 2, 1.0, options);
  const std::vector<std::int64_t> counts{900, 100};
  for (int block = 0; block < 3; ++block) bias.add_block(counts);
  const double before = bias.largest();
  Drift little;
  little.add(-1.0F, -1.05F);
  EXPECT_NEAR(little.mean(), 0.05, 1e-6);
  bias.add_drift(little);
  EXPECT_FALSE(bias.held());
  bias.add_block(counts);
  EXPECT_GT(bias.largest(), before);
  Drift much;
  much.add(-1.0F, -1.5F);
  much.add(-1.5F, -1.0F);
  EXPECT_NEAR(much.mean_absolute(), 0.5, 1e-6);
  EXPECT_NEAR(much.mean(), 0, 1e-6);
  bias.add_drift(much);
  EXPECT_TRUE(bias.held());
  const double held = bias.largest();
  for (int block = 0; block < 10; ++block) bias.add_block(counts);
  EXPECT_EQ(bias.largest(), held);
}

}  // namespace
}  // namespace atl
