// Sampling from a row of logits: distributions, ties, extremes, and the plain sampler's tokens.

#include "compute/sampling.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <vector>

#include "compute/sampling_arithmetic.hpp"
#include "tests/plain_sampler.hpp"

namespace atl::testing {
namespace {

const std::vector<float> logits = {0.0F, 2.0F, 1.0F, 2.0F, -1.0F};

SampledToken sample(const std::vector<float>& row, const SamplingOptions& options,
                    std::int64_t index = 0) {
  return compute::sample_row(row, compute::draw_of({options, index}));
}

std::vector<double> probabilities(double temperature) {
  std::vector<double> p;
  double sum = 0;
  for (const float logit : logits) sum += p.emplace_back(std::exp(logit / temperature));
  for (double& x : p) x /= sum;
  return p;
}

TEST(Sampling, GreedyTakesTheFirstOfEquals) {
  const SampledToken sampled = sample(logits, {});
  EXPECT_EQ(sampled.token, 1);
  EXPECT_NEAR(sampled.logprob, std::log(probabilities(1)[1]), 1e-6);
  EXPECT_EQ(sample({-1.0F, 0.0F, -0.0F}, {}).token, 1);
  EXPECT_EQ(sample({-1.0F, -0.0F, 0.0F}, {}).token, 1);
}

/// Expects shares of draws to be `expected`, but for five standard deviations of such a share.
void expect_shares(const SamplingOptions& options, const std::vector<double>& expected) {
  constexpr int draws = 40000;
  std::map<int, int> seen;
  for (int i = 0; i < draws; ++i) ++seen[sample(logits, options, i).token];
  for (int token = 0; token < 5; ++token) {
    const double p = expected[static_cast<std::size_t>(token)];
    EXPECT_NEAR(seen[token] / double(draws), p, 5 * std::sqrt(p * (1 - p) / draws)) << token;
  }
}

TEST(Sampling, DrawsFollowTheTemperedDistribution) {
  expect_shares({0.7, 1.0, 7}, probabilities(0.7));
}

TEST(Sampling, TopPKeepsTheSmallestSetThatReachesItAndItsProportions) {
  const auto p = probabilities(1);
  const double top_p = p[1] + p[3] + 0.5 * p[2];  // two tokens do not reach it, three do
  const double kept = p[1] + p[3] + p[2];
  expect_shares({1.0, top_p, 3}, {0, p[1] / kept, p[2] / kept, p[3] / kept, 0});
  expect_shares({1.0, 1e-9, 3}, {0, 1, 0, 0, 0});
  // Of two that are equally probable the lower id goes first.
  expect_shares({1.0, 0.9 * p[1], 3}, {0, 1, 0, 0, 0});
  expect_shares({1.0, 1.5 * p[1], 3}, {0, 0.5, 0, 0.5, 0});
}

TEST(Sampling, ATinyTemperatureIsGreedy) {
  for (const double temperature : {1e-9, 1e-300, 5e-324}) {
    expect_shares({temperature, 1.0, 5}, {0, 0.5, 0, 0.5, 0});
    EXPECT_EQ(sample({1.0F, 1.5F, 1.25F}, {temperature, 0.3, 5}).token, 1);
  }
}

TEST(Sampling, SeedAndIndexFixTheDraw) {
  std::vector<int> a, b, c;
  for (int i = 0; i < 64; ++i) {
    a.push_back(sample(logits, {1.0, 0.9, 42}, i).token);
    b.push_back(sample(logits, {1.0, 0.9, 42}, i).token);
    c.push_back(sample(logits, {1.0, 0.9, 43}, i).token);
  }
  EXPECT_EQ(a, b);
  EXPECT_NE(a, c);
}

TEST(Sampling, RandomBitsAreUniform) {
  constexpr int count = 64000;
  std::vector<int> of_bin(64);
  for (int i = 0; i < count; ++i) ++of_bin[compute::random_bits(9, i) >> 58U];
  // five standard deviations of a bin's count
  for (const int n : of_bin) EXPECT_NEAR(n, count / 64, 5 * std::sqrt(count / 64.0));
}

TEST(Sampling, WeightsAreThePowers) {
  std::mt19937 generator(3);
  std::uniform_real_distribution<float> any(-60, 0);
  const double whole = std::ldexp(1.0, compute::weight_bits);
  for (int i = 0; i < 100000; ++i) {
    const float logit = any(generator);
    for (const double temperature : {0.3, 1.0, 2.0}) {
      const double exact = std::exp(logit / temperature) * whole;
      const auto weight = static_cast<double>(
          compute::weight_of(logit + 7, 7, compute::scale_of_one / temperature));
      // Logits near -60 lose their last bits when 7 is added; then 24 bits of the power, or a unit.
      EXPECT_NEAR(weight, exact, exact * (4e-6 / temperature + 4e-7) + 1) << logit;
      EXPECT_LE(weight, whole);
    }
  }
  EXPECT_EQ(compute::weight_of(-3.5F, -3.5F, 1e300), std::uint64_t{1} << compute::weight_bits);
}

TEST(Sampling, KeysOrderLogits) {
  const std::vector<float> rising = {-3e38F, -1.0F, -1e-40F, 0.0F, 1e-45F, 1e-40F, 0.5F, 3e38F};
  for (std::size_t i = 0; i < rising.size(); ++i) {
    EXPECT_EQ(compute::logit_of(compute::key_of(rising[i])), rising[i]);
    if (i > 0) {
      EXPECT_LT(compute::key_of(rising[i - 1]), compute::key_of(rising[i]));
    }
  }
  EXPECT_EQ(compute::key_of(0.0F), compute::key_of(-0.0F));
}

TEST(Sampling, GivesThePlainSamplersTokens) {
  std::mt19937 generator(5);
  for (const int vocab : {1, 2, 3, 17, 256, 1001, 20000}) {
    for (const float step : {0.0F, 0.5F, 2.0F}) {  // of the logits' values: many are equal
      std::normal_distribution<float> normal(1, 3);
      std::vector<float> row(static_cast<std::size_t>(vocab));
      for (float& x : row) {
        x = normal(generator);
        if (step > 0) x = std::round(x / step) * step;
      }
      for (const SamplingRequest& request : many_requests()) {
        const SampledToken expected = plain_sample(row, request);
        const SampledToken got = compute::sample_row(row, compute::draw_of(request));
        ASSERT_EQ(got.token, expected.token)
            << vocab << " " << step << " " << request.options.temperature << " "
            << request.options.top_p;
        // Weights are exact to 24 bits, and there are up to log2(20000) of them in a sum's log.
        ASSERT_NEAR(got.logprob, expected.logprob, 2e-6);
      }
    }
  }
}

TEST(Sampling, TopKAndMinPKeepTheirTokensAndProportions) {
  const auto p = probabilities(1);
  SamplingOptions options{1.0, 1.0, 3, 3};
  const double three = p[1] + p[3] + p[2];
  expect_shares(options, {0, p[1] / three, p[2] / three, p[3] / three, 0});
  options.top_k = 1;  // of two that are equally probable the lower id
  expect_shares(options, {0, 1, 0, 0, 0});
  options.top_k = 5;
  options.min_p = p[2] / p[1] * 0.99;
  expect_shares(options, {0, p[1] / three, p[2] / three, p[3] / three, 0});
  options.min_p = p[2] / p[1] * 1.01;
  expect_shares(options, {0, 0.5, 0, 0.5, 0});
  // top_p is of what the two leave: here two thirds of three.
  options = {1.0, (p[1] + p[3]) / three * 0.99, 3, 3};
  expect_shares(options, {0, 0.5, 0, 0.5, 0});
}

TEST(Sampling, PenaltiesAndBiasesMoveTheDistribution) {
  std::vector<LogitChange> changes = {{1, 2, 0, true, false},  // generated twice
                                      {2, 0, 0, true, false},  // of the prompt
                                      {0, 0, 4.0F, false, false},
                                      {3, 0, 0, false, true}};  // banned
  SamplingRequest request{{1.0, 1.0, 8}, 0, -1, changes};
  request.options.repetition_penalty = 2;
  request.options.presence_penalty = 0.25;
  request.options.frequency_penalty = 0.5;
  const std::vector<double> moved = {4.0, 2.0 / 2 - 0.25 - 2 * 0.5, 1.0 / 2, -HUGE_VAL, -1.0};
  double sum = 0;
  for (const double x : moved) sum += std::exp(x);
  constexpr int draws = 40000;
  std::map<int, int> seen;
  for (; request.index < draws; ++request.index) {
    auto row = logits;
    SampledToken token;
    compute::sample_row(row, compute::draw_of(request), request.changes, &token);
    ++seen[token.token];
    // That of the model's own distribution.
    ASSERT_NEAR(token.logprob, std::log(probabilities(1)[static_cast<std::size_t>(token.token)]),
                1e-6);
  }
  for (int token = 0; token < 5; ++token) {
    const double p = std::exp(moved[static_cast<std::size_t>(token)]) / sum;
    EXPECT_NEAR(seen[token] / double(draws), p, 5 * std::sqrt(p * (1 - p) / draws)) << token;
  }
}

TEST(Sampling, ChangesAndTopsAreThePlainSamplers) {
  std::mt19937 generator(6);
  for (const int vocab : {1, 2, 19, 256, 3000}) {
    std::normal_distribution<float> normal(1, 3);
    std::vector<float> row(static_cast<std::size_t>(vocab));
    for (float& x : row) x = std::round(4 * normal(generator)) / 4;
    std::vector<std::vector<LogitChange>> room;
    for (const SamplingRequest& request : changed_requests(vocab, room)) {
      const auto expected = plain_outcomes(row, request);
      auto changed = row;
      std::vector<SampledToken> got(request.outcomes());
      compute::sample_row(changed, compute::draw_of(request), request.changes, got.data());
      for (std::size_t i = 0; i < got.size(); ++i) {
        ASSERT_EQ(got[i].token, expected[i].token) << vocab << " " << i;
        ASSERT_NEAR(got[i].logprob, expected[i].logprob, 2e-6);
      }
    }
  }
}

TEST(Sampling, MarksWhatIsNotFinite) {
  const float infinite = std::numeric_limits<float>::infinity();
  for (const float bad : {infinite, -infinite, std::numeric_limits<float>::quiet_NaN()}) {
    EXPECT_EQ(sample({1.0F, bad}, {}).token, -1);
    EXPECT_EQ(sample({bad, 1.0F}, {0.7, 0.5, 3}, 1).token, -1);
  }
  EXPECT_EQ(sample({1.0F, 2.0F}, {}).token, 1);
}

}  // namespace
}  // namespace atl::testing
