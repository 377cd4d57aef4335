#pragma once
// What every backend must do with random tiny models. RankOptions say which backend.

#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <vector>

#include "compute/error.hpp"
#include "tests/unit/tiny_model.hpp"

namespace atl::testing {

/// sample() gives what sample_row() makes of the logits.
inline void expect_sampled_from_logits(const reference::Model& model, const RankOptions& options) {
  const auto tokens = Random(6, options.dtype).tokens(100, model.shape.vocab);
  const auto vocab = static_cast<std::size_t>(model.shape.vocab);
  SingleRank rank(model, options);
  const SingleRank::Piece piece{rank.add_sequence(), tokens};
  rank.set_chunk({&piece, 1});
  rank.run_layers();
  std::vector<std::int32_t> rows(tokens.size());
  std::vector<SamplingRequest> how(rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i) {
    rows[i] = static_cast<std::int32_t>(rows.size() - 1 - i);
    if (i % 3 != 0) how[i] = {{0.9, i % 3 == 1 ? 1.0 : 0.8, i}, static_cast<std::int64_t>(i * i)};
  }
  std::vector<float> logits(rows.size() * vocab);
  std::vector<SampledToken> sampled(rows.size());
  rank.finish(rank.backend().logits(rank.chunk(), rows, logits.data()));
  rank.finish(rank.backend().sample(rank.chunk(), rows, how, sampled.data()));
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const SampledToken expected =
        compute::sample_row({logits.data() + i * vocab, vocab}, compute::draw_of(how[i]));
    EXPECT_EQ(sampled[i].token, expected.token) << "row " << i;
    EXPECT_FLOAT_EQ(sampled[i].logprob, expected.logprob) << "row " << i;
  }
  EXPECT_THROW(rank.backend().sample(rank.chunk(), rows, {}, sampled.data()), Error);
}

/// A logit that is not a number is an error of the operation.
inline void expect_not_finite_told(const RankOptions& options) {
  auto model = random_model(tiny_shape(), options.dtype, 6);
  model.lm_head[7][3] = std::numeric_limits<double>::quiet_NaN();
  SingleRank rank(model, options);
  const std::vector<std::int32_t> tokens = {1, 2};
  const SingleRank::Piece piece{rank.add_sequence(), tokens};
  rank.set_chunk({&piece, 1});
  rank.run_layers();
  const std::vector<std::int32_t> rows = {0, 1};
  const std::vector<SamplingRequest> how(2);
  std::vector<SampledToken> sampled(2);
  const compute::Event event = rank.backend().sample(rank.chunk(), rows, how, sampled.data());
  try {
    rank.finish(event);
    FAIL() << "logits that are not finite";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("logits are not finite"), std::string::npos)
        << error.what();
  }
}

}  // namespace atl::testing
