#include "app/sampler.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <vector>

#include "compute/error.hpp"

namespace atl {
namespace {

const std::vector<float> logits = {0.0F, 2.0F, 1.0F, 2.0F, -1.0F};

std::vector<double> probabilities(double temperature) {
  std::vector<double> p;
  double sum = 0;
  for (const float logit : logits) sum += p.emplace_back(std::exp(logit / temperature));
  for (double& x : p) x /= sum;
  return p;
}

TEST(Sampler, GreedyTakesTheFirstOfEquals) {
  Sampler sampler(5);
  const SampledToken sampled = sampler.sample(logits, {}, 0);
  EXPECT_EQ(sampled.token, 1);
  EXPECT_NEAR(sampled.logprob, std::log(probabilities(1)[1]), 1e-6);
}

TEST(Sampler, DrawsFollowTheTemperedDistribution) {
  Sampler sampler(5);
  const double temperature = 0.7;
  const auto expected = probabilities(temperature);
  constexpr int draws = 40000;
  std::map<int, int> seen;
  for (int i = 0; i < draws; ++i) ++seen[sampler.sample(logits, {temperature, 1.0, 7}, i).token];
  for (int token = 0; token < 5; ++token) {
    const double p = expected[static_cast<std::size_t>(token)];
    // five standard deviations of a binomial share
    EXPECT_NEAR(seen[token] / double(draws), p, 5 * std::sqrt(p * (1 - p) / draws)) << token;
  }
}

TEST(Sampler, TopPKeepsTheSmallestSetThatReachesIt) {
  Sampler sampler(5);
  const auto p = probabilities(1);
  std::map<int, int> seen;
  const double top_p = p[1] + p[3] + 0.5 * p[2];  // two tokens do not reach it, three do
  for (int i = 0; i < 5000; ++i) ++seen[sampler.sample(logits, {1.0, top_p, 3}, i).token];
  EXPECT_EQ(seen.size(), 3U);
  EXPECT_TRUE(seen.contains(1) && seen.contains(3) && seen.contains(2));
  seen.clear();
  for (int i = 0; i < 1000; ++i) ++seen[sampler.sample(logits, {1.0, 1e-9, 3}, i).token];
  EXPECT_EQ(seen.size(), 1U);
  EXPECT_TRUE(seen.contains(1));
}

TEST(Sampler, SeedAndIndexFixTheDraw) {
  Sampler one(5);
  Sampler other(5);
  std::vector<int> a, b, c;
  for (int i = 0; i < 64; ++i) {
    a.push_back(one.sample(logits, {1.0, 0.9, 42}, i).token);
    b.push_back(other.sample(logits, {1.0, 0.9, 42}, i).token);
    c.push_back(one.sample(logits, {1.0, 0.9, 43}, i).token);
  }
  EXPECT_EQ(a, b);
  EXPECT_NE(a, c);
}

TEST(Sampler, RefusesWhatIsNotANumber) {
  Sampler sampler(2);
  const std::vector<float> bad = {1.0F, std::numeric_limits<float>::quiet_NaN()};
  EXPECT_THROW(sampler.sample(bad, {}, 0), Error);
}

}  // namespace
}  // namespace atl
