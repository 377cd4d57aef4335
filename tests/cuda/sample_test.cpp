// timeout: 120
// Sampling on the device gives the tokens of the plain sampler: any vocabulary, ties, extremes,
// whatever the neighbours.

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "compute/cuda/kernels.hpp"
#include "tests/cuda/device_memory.hpp"
#include "tests/plain_sampler.hpp"

namespace atl::testing {
namespace {

namespace cuda = compute::cuda;
using Row = std::vector<float>;

class CudaSample : public ::testing::Test {
 protected:
  void SetUp() override { skip_without_device(); }

  /// One row's outcomes after the other's.
  static std::vector<SampledToken> sample(const std::vector<Row>& rows,
                                          const std::vector<SamplingRequest>& requests) {
    Row flat;
    for (const Row& row : rows) flat.insert(flat.end(), row.begin(), row.end());
    std::vector<compute::Draw> draws;
    std::vector<LogitChange> changes;
    std::size_t outcomes = 0;
    for (const SamplingRequest& request : requests) {
      draws.push_back(compute::draw_of(request));
      draws.back().first_change = std::ssize(changes);
      draws.back().first_outcome = static_cast<std::int64_t>(outcomes);
      changes.insert(changes.end(), request.changes.begin(), request.changes.end());
      outcomes += request.outcomes();
    }
    changes.emplace_back();  // a device has no empty arrays
    const DeviceArray<float> logits(flat);
    const DeviceArray<compute::Draw> device_draws(draws);
    const DeviceArray<LogitChange> device_changes(changes);
    const DeviceArray<SampledToken> out(outcomes);
    cuda::sample(nullptr, logits.get(), device_draws.get(), device_changes.get(), out.get(),
                 static_cast<int>(rows.size()), static_cast<int>(rows[0].size()));
    return out.host();
  }

  /// Normal logits; multiples of `step` where it is above 0, so that many are equal.
  Row random_row(int vocab, float step) {
    std::normal_distribution<float> normal(1, 3);
    Row row(static_cast<std::size_t>(vocab));
    for (float& x : row) {
      x = normal(generator_);
      if (step > 0) x = std::round(x / step) * step;
    }
    return row;
  }

  static void expect_plain(const std::vector<Row>& rows,
                           const std::vector<SamplingRequest>& requests) {
    const auto got = sample(rows, requests);
    auto outcome = got.begin();
    for (std::size_t i = 0; i < rows.size(); ++i) {
      for (const SampledToken& expected : plain_outcomes(rows[i], requests[i])) {
        EXPECT_EQ(outcome->token, expected.token)
            << "row " << i << " of " << rows[i].size() << ", temperature "
            << requests[i].options.temperature << ", top_p " << requests[i].options.top_p
            << ", top_k " << requests[i].options.top_k;
        // Weights are exact to 24 bits, the result to as many.
        EXPECT_NEAR(outcome->logprob, expected.logprob, 1e-6 * (2 + std::abs(expected.logprob)));
        ++outcome;
      }
    }
    EXPECT_EQ(outcome, got.end());
  }

  std::mt19937 generator_{7};
};

TEST_F(CudaSample, AnyVocabularyAnyRequest) {
  const auto requests = many_requests();
  for (const int vocab : {1, 2, 3, 15, 16, 17, 256, 511, 1001, 5000}) {
    std::vector<Row> rows;
    for (std::size_t i = 0; i < requests.size(); ++i) {
      rows.push_back(random_row(vocab, std::array{0.0F, 0.5F, 4.0F}[i % 3]));
    }
    expect_plain(rows, requests);
  }
}

TEST_F(CudaSample, ChangedLogits) {
  for (const int vocab : {1, 2, 17, 1000}) {
    std::vector<std::vector<LogitChange>> room;
    const auto requests = changed_requests(vocab, room);
    std::vector<Row> rows;
    for (std::size_t i = 0; i < requests.size(); ++i) rows.push_back(random_row(vocab, 0.25F));
    expect_plain(rows, requests);
  }
}

TEST_F(CudaSample, LargeVocabularies) {
  for (const int vocab : {32768, 151936, 262147}) {
    std::vector<Row> rows;
    std::vector<SamplingRequest> requests;
    for (const double top_p : {1.0, 0.95, 0.2}) {
      rows.push_back(random_row(vocab, top_p < 0.5 ? 0.25F : 0.0F));
      requests.push_back({{0.9, top_p, 11}, 3});
    }
    rows.push_back(random_row(vocab, 1));
    requests.emplace_back();
    expect_plain(rows, requests);
  }
}

TEST_F(CudaSample, EqualLogitsAndExtremeOnes) {
  const auto requests = many_requests();
  const auto all = [&](const Row& row) {
    expect_plain(std::vector<Row>(requests.size(), row), requests);
  };
  all(Row(1000, -2.5F));
  Row row(777, -1e38F);
  row[600] = 1e38F;
  all(row);
  row.assign(530, 0.0F);
  for (std::size_t i = 0; i < row.size(); i += 2) row[i] = -0.0F;  // as large as 0
  all(row);
  for (std::size_t i = 0; i < row.size(); ++i) row[i] = static_cast<float>(i % 7) * 1e-44F;
  all(row);
}

TEST_F(CudaSample, EveryTokenIsDrawnAsOftenAsItsWeight) {
  const Row row = {0.0F, 2.0F, 1.0F, 2.0F, -1.0F};
  constexpr int draws = 1000;
  std::vector<SamplingRequest> requests;
  for (int i = 0; i < draws; ++i) requests.push_back({{1.0, 0.9, 21}, i});
  std::array<double, 5> share{};
  for (const SampledToken& one : sample(std::vector<Row>(draws, row), requests)) {
    share[static_cast<std::size_t>(one.token)] += 1.0 / draws;
  }
  const double kept = 2 * std::exp(2.0) + std::exp(1.0);  // 0.94 of all
  const std::array<double, 5> expected = {0, std::exp(2.0) / kept, std::exp(1.0) / kept,
                                          std::exp(2.0) / kept, 0};
  for (std::size_t i = 0; i < 5; ++i) {
    // five standard deviations of such a share
    EXPECT_NEAR(share[i], expected[i],
                5 * std::sqrt(expected[i] * (1 - expected[i]) / draws) + 1e-9);
  }
}

TEST_F(CudaSample, WhatIsNotFiniteIsMarkedInItsRowAlone) {
  const float infinite = std::numeric_limits<float>::infinity();
  for (const float bad :
       {infinite, -infinite, std::numeric_limits<float>::quiet_NaN(), -std::nanf("1")}) {
    for (const double temperature : {0.0, 0.8}) {
      std::vector<Row> rows(3, random_row(1001, 0));
      const std::vector<SamplingRequest> requests(3, {{temperature, 0.9, 4}, 2});
      rows[1][1000] = bad;
      const auto got = sample(rows, requests);
      EXPECT_EQ(got[1].token, -1);
      for (const std::size_t i : {0, 2}) {
        EXPECT_EQ(got[i].token, plain_sample(rows[i], requests[i]).token);
      }
    }
  }
}

TEST_F(CudaSample, ARowsTokenDoesNotDependOnItsNeighbours) {
  for (const int vocab : {999, 1000}) {  // rows aligned to 16 bytes, and not
    std::vector<Row> rows;
    std::vector<SamplingRequest> requests = many_requests();
    for (SamplingRequest& request : requests) request.tops = 0;  // one outcome a row
    for (std::size_t i = 0; i < requests.size(); ++i) rows.push_back(random_row(vocab, 0));
    const auto together = sample(rows, requests);
    for (const std::size_t i : {std::size_t{0}, std::size_t{15}, rows.size() - 1}) {
      const auto alone = sample({rows[i]}, {requests[i]});
      EXPECT_EQ(alone[0].token, together[i].token);
      EXPECT_EQ(alone[0].logprob, together[i].logprob);
    }
  }
}

}  // namespace
}  // namespace atl::testing
