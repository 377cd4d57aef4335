#pragma once
// What every backend must do with random tiny models. RankOptions say which backend.

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "compute/error.hpp"
#include "tests/tiny_model.hpp"

namespace atl::testing {

/// Log-probabilities of every token are the oracle's.
inline void expect_float32_agrees(const ModelShape& shape, RankOptions options) {
  options.dtype = DType::float32;
  options.reverse_experts = true;
  const auto model = random_model(shape, DType::float32, 11);
  const auto tokens = Random(5, DType::float32).tokens(150, shape.vocab);
  SingleRank rank(model, options);
  EXPECT_LT(largest_difference(rank.log_probs(tokens, 200), reference::log_probs(model, tokens)),
            1e-4);
}

/// The error against the oracle is what rounding to options.dtype alone makes. A few rows whose
/// router chooses another expert make most of it, so that it takes several models to compare.
inline void expect_rounding_error_only(const ModelShape& shape, const RankOptions& options,
                                       unsigned num_models) {
  const DType dtype = options.dtype;
  double own = 0;
  double rounding = 0;
  for (unsigned seed = 1; seed <= num_models; ++seed) {
    auto model = random_model(shape, dtype, seed);
    model.prompt = options.prompt;
    const auto tokens = Random(seed, dtype).tokens(100, shape.vocab);
    const auto truth = reference::log_probs(model, tokens);
    SingleRank rank(model, options);
    own += mean_difference(rank.log_probs(tokens, 100), truth);
    rounding += mean_difference(reference::log_probs(model, tokens, rounding_of(dtype)), truth);
  }
  EXPECT_LT(own, 1.25 * rounding) << name_of(dtype);
  EXPECT_GT(own, 0.5 * rounding) << name_of(dtype);  // else it does not round where it should
}

/// logprobs() gives the oracle's of given tokens.
inline void expect_logprobs_agree(const RankOptions& options) {
  const auto model = random_model(tiny_shape(), DType::float32, 8);
  const auto tokens = Random(8, DType::float32).tokens(140, model.shape.vocab);
  const auto truth = reference::log_probs(model, tokens);
  SingleRank rank(model, options);
  const SingleRank::Piece piece{rank.add_sequence(), tokens};
  rank.set_chunk({&piece, 1});
  rank.run_layers();
  std::vector<std::int32_t> rows;
  std::vector<std::int32_t> targets;
  for (std::int32_t t = 0; t + 1 < 140; ++t) {
    rows.push_back(t);
    targets.push_back(tokens[static_cast<std::size_t>(t) + 1]);
  }
  for (std::size_t t = 0; t < targets.size(); t += 3) {  // some that are the most probable ones
    targets[t] = static_cast<std::int32_t>(std::ranges::max_element(truth[t]) - truth[t].begin());
  }
  std::vector<ScoredToken> result(rows.size());
  rank.finish(rank.backend().logprobs(rank.chunk(), rows, targets, result.data()));
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const double expected = truth[i][static_cast<std::size_t>(targets[i])];
    EXPECT_NEAR(result[i].logprob, expected, 1e-4);
    const double best = *std::ranges::max_element(truth[i]);
    if (expected < best - 1e-4) {
      EXPECT_EQ(result[i].greedy, 0);
    }
    const auto close = std::ranges::count_if(truth[i], [&](double x) { return x > best - 1e-4; });
    if (expected == best && close == 1) {
      EXPECT_EQ(result[i].greedy, 1);
    }
  }
}

inline void expect_empty_chunk_passes(const RankOptions& options) {
  SingleRank rank(random_model(tiny_shape(), options.dtype, 2), options);
  rank.set_chunk({});
  rank.run_layers();
  rank.finish(rank.backend().logits(rank.chunk(), {}, nullptr));
  rank.finish(rank.backend().sample(rank.chunk(), {}, {}, nullptr));
  rank.finish(rank.backend().logprobs(rank.chunk(), {}, {}, nullptr));
  for (const std::int32_t count : rank.chunk().packed_counts) EXPECT_EQ(count, 0);
  rank.finish(rank.backend().experts(rank.chunk(), 1, {}));
}

/// Weights that take the place of others give what they give alone; what is cached stays, and no
/// memory is added.
inline void expect_weights_replaced(const RankOptions& options) {
  const auto first = random_model(tiny_shape(), options.dtype, 2);
  const auto second = random_model(tiny_shape(), options.dtype, 9);
  const auto tokens = Random(3, options.dtype).tokens(40, first.shape.vocab);
  SingleRank rank(first, options);
  const auto by_first = rank.logits(tokens, 16);
  const auto by_second = SingleRank(second, options).logits(tokens, 16);
  ASSERT_NE(by_first, by_second);
  const auto bytes = static_cast<std::size_t>(40 * first.shape.kv_width()) * size_of(options.dtype);
  const auto cached = [&] {  // of the first sequence
    std::vector<std::byte> keys(bytes);
    std::vector<std::byte> values(bytes);
    rank.finish(rank.backend().save_kv(1, rank.pages_of(0), 0, 40, keys.data(), values.data()));
    return std::pair(keys, values);
  };
  const auto kept = cached();
  const compute::Backend::Memory before = rank.backend().memory();
  for (int i = 0; i < 2; ++i) {
    rank.load(second);
    EXPECT_EQ(rank.logits(tokens, 16), by_second);
    rank.load(first);
    EXPECT_EQ(rank.logits(tokens, 16), by_first);
  }
  EXPECT_EQ(cached(), kept);
  const compute::Backend::Memory after = rank.backend().memory();
  EXPECT_EQ(after.weights, before.weights);
  EXPECT_EQ(after.kv_cache, before.kv_cache);
  EXPECT_EQ(after.buffers, before.buffers);
  EXPECT_THROW(rank.backend().finish_loading(), Error);  // none has come again
}

/// What was saved of a cache becomes that of another sequence, whose next token gets the same bits.
inline void expect_cache_saved_and_loaded(const ModelKind& kind, RankOptions options) {
  const ModelShape& shape = kind.shape;
  const auto model = random_model(shape, DType::bfloat16, 5);
  const auto tokens = Random(5, DType::bfloat16).tokens(91, shape.vocab);
  options.prompt = 80;
  SingleRank rank(model, options);
  const auto whole = rank.logits(tokens, 90);
  const int other = rank.add_sequence_of(90);
  for (int layer = 0; layer < shape.num_layers; ++layer) {
    const auto width = static_cast<std::size_t>(
        shape.latent.used() ? shape.latent.width()
                            : shape.attention(layer).num_kv_heads * shape.head_dim);
    std::vector<std::byte> keys(90 * width * 2);
    std::vector<std::byte> values(keys.size());
    rank.finish(rank.backend().save_kv(layer, rank.pages_of(0), 0, 90, keys.data(), values.data()));
    rank.finish(
        rank.backend().load_kv(layer, rank.pages_of(other), 0, 90, keys.data(), values.data()));
  }
  const SingleRank::Piece last{other, std::span(tokens).subspan(90)};
  rank.set_chunk({&last, 1});
  rank.run_layers();
  std::vector<float> logits(static_cast<std::size_t>(shape.vocab));
  const std::int32_t row = 0;
  rank.finish(rank.backend().logits(rank.chunk(), {&row, 1}, logits.data()));
  EXPECT_TRUE(std::equal(logits.begin(), logits.end(), whole.end() - shape.vocab)) << kind.name;
}

/// Attention and experts in parts give what they give as a whole, whatever runs between the parts.
inline void expect_parts_make_the_whole(const ModelShape& shape, RankOptions options) {
  const auto model = random_model(shape, options.dtype, 4);
  const auto tokens = Random(4, options.dtype).tokens(150, shape.vocab);
  options.reverse_experts = true;
  const auto whole = SingleRank(model, options).logits(tokens, 140);
  options.in_parts = true;
  EXPECT_EQ(SingleRank(model, options).logits(tokens, 140), whole);
}

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
    if (i % 4 == 3) how[i].tops = 1 + static_cast<int>(i % 7);
  }
  // Together more changes than a device takes at once, and rows in between that have none.
  std::vector<std::vector<LogitChange>> changes(rows.size());
  for (std::size_t i = 0; i < rows.size(); i += 2) {
    for (std::size_t token = i % 5; token < vocab; token += 1 + i % 3) {
      const auto generated = static_cast<std::int32_t>((token + i) % 3);
      changes[i].push_back({static_cast<std::int32_t>(token), generated, 0.25F, true});
    }
    how[i].options.repetition_penalty = 1.5;
    how[i].options.frequency_penalty = 0.5;
    how[i].changes = changes[i];
  }
  const auto outcomes = std::accumulate(
      how.begin(), how.end(), std::size_t{0},
      [](std::size_t sum, const SamplingRequest& request) { return sum + request.outcomes(); });
  std::vector<float> logits(rows.size() * vocab);
  std::vector<SampledToken> sampled(outcomes);
  rank.finish(rank.backend().logits(rank.chunk(), rows, logits.data()));
  rank.finish(rank.backend().sample(rank.chunk(), rows, how, sampled.data()));
  const SampledToken* got = sampled.data();
  for (std::size_t i = 0; i < rows.size(); ++i) {
    std::vector<SampledToken> expected(how[i].outcomes());
    compute::sample_row({logits.data() + i * vocab, vocab}, compute::draw_of(how[i]),
                        how[i].changes, expected.data());
    for (const SampledToken& one : expected) {
      EXPECT_EQ(got->token, one.token) << "row " << i;
      EXPECT_FLOAT_EQ(got->logprob, one.logprob) << "row " << i;
      ++got;
    }
  }
  EXPECT_THROW(rank.backend().sample(rank.chunk(), rows, {}, sampled.data()), Error);
}

/// A logit that is not a number marks its row, for sampling and for scoring, and no other row: only
/// token 2 reaches the experts' NaN.
inline void expect_not_finite_told(const RankOptions& options) {
  auto model = random_model(tiny_shape(), options.dtype, 6);
  model.embedding[2][3] = std::numeric_limits<double>::quiet_NaN();
  SingleRank rank(model, options);
  const std::vector<std::int32_t> first = {1, 4};
  const std::vector<std::int32_t> second = {1, 2, 1};
  const std::vector<SingleRank::Piece> pieces = {{rank.add_sequence(), first},
                                                 {rank.add_sequence(), second}};
  rank.set_chunk(pieces);
  rank.run_layers();
  const std::vector<std::int32_t> rows = {4, 0, 1, 2, 3};
  const std::vector<bool> bad = {true, false, false, false, true};
  const std::vector<SamplingRequest> how(rows.size());
  const std::vector<std::int32_t> targets(rows.size(), 1);
  std::vector<SampledToken> sampled(rows.size());
  std::vector<ScoredToken> logprobs(rows.size());
  rank.finish(rank.backend().sample(rank.chunk(), rows, how, sampled.data()));
  rank.finish(rank.backend().logprobs(rank.chunk(), rows, targets, logprobs.data()));
  for (std::size_t i = 0; i < rows.size(); ++i) {
    EXPECT_EQ(sampled[i].token < 0, bad[i]) << "row " << rows[i];
    EXPECT_EQ(std::isnan(logprobs[i].logprob), bad[i]) << "row " << rows[i];
  }
}

/// Choices of one chunk in all layers, as a backend takes and gives them.
struct ChunkChoices {
  std::vector<std::vector<std::int32_t>> experts;  // [layers][T * top_k]
  std::vector<std::vector<float>> weights;
};

inline ChunkChoices choices_of(const reference::Routing& routing) {
  ChunkChoices result;
  for (const auto& layer : routing) {
    auto& experts = result.experts.emplace_back();
    auto& weights = result.weights.emplace_back();
    for (const reference::Choices& token : layer) {
      for (const reference::Choice& choice : token) {
        experts.push_back(choice.expert);
        weights.push_back(static_cast<float>(choice.weight));
      }
    }
  }
  return result;
}

/// Different experts for every token and layer, with weights that no router would give.
inline reference::Routing made_choices(const ModelShape& shape, std::size_t tokens) {
  std::mt19937 generator(23);
  std::uniform_real_distribution<float> weight(0.1F, 0.9F);
  std::vector<int> experts(static_cast<std::size_t>(shape.num_experts));
  std::iota(experts.begin(), experts.end(), 0);
  reference::Routing routing(static_cast<std::size_t>(shape.num_layers));
  for (int l = 0; l < shape.num_layers; ++l) {
    for (std::size_t t = 0; t < tokens && !shape.is_dense(l); ++t) {
      std::shuffle(experts.begin(), experts.end(), generator);
      auto& token = routing[static_cast<std::size_t>(l)].emplace_back();
      for (int j = 0; j < shape.top_k; ++j) {
        token.push_back({experts[static_cast<std::size_t>(j)], weight(generator)});
      }
    }
  }
  return routing;
}

/// As expect_rounding_error_only, with the experts that the oracle chooses given to both: where a
/// row that takes other experts changes all rows after it, chance outweighs rounding.
inline void expect_rounding_error_with_given_experts(const ModelShape& shape,
                                                     const RankOptions& options,
                                                     unsigned num_models) {
  const DType dtype = options.dtype;
  double own = 0;
  double rounding = 0;
  for (unsigned seed = 1; seed <= num_models; ++seed) {
    auto model = random_model(shape, dtype, seed);
    model.prompt = options.prompt;
    const auto tokens = Random(seed, dtype).tokens(100, shape.vocab);
    const auto truth = reference::log_probs(model, tokens);
    reference::Forced forced{{}, false};
    reference::logits(model, tokens, reference::exact, nullptr, &forced.choices);
    const ChunkChoices given = choices_of(forced.choices);
    SingleRank rank(model, options);
    rank.forced = [&](int layer) {
      return compute::ForcedChoices{given.experts[static_cast<std::size_t>(layer)].data(), nullptr};
    };
    own += mean_difference(rank.log_probs(tokens, 100), truth);
    const auto rounded = reference::log_probs(model, tokens, rounding_of(dtype), &forced);
    rounding += mean_difference(rounded, truth);
  }
  EXPECT_LT(own, 1.25 * rounding) << name_of(dtype);
  EXPECT_GT(own, 0.5 * rounding) << name_of(dtype);
}

/// What a backend says that its routers chose is what the oracle's choose; choices that are given
/// take their place, with weights of their own and with the routers'.
inline void expect_choices_told_and_followed(const ModelShape& shape, RankOptions options) {
  options.dtype = DType::float32;
  options.reverse_experts = true;
  const auto model = random_model(shape, DType::float32, 17);
  const auto tokens = Random(6, DType::float32).tokens(70, shape.vocab);
  SingleRank rank(model, options);
  ChunkChoices told;
  told.experts.resize(static_cast<std::size_t>(shape.num_layers));
  told.weights.resize(told.experts.size());
  rank.routed = [&](int layer) {
    auto& experts = told.experts[static_cast<std::size_t>(layer)];
    auto& weights = told.weights[static_cast<std::size_t>(layer)];
    experts.resize(tokens.size() * static_cast<std::size_t>(shape.top_k));
    weights.resize(experts.size());
    rank.finish(rank.backend().save_choices(rank.chunk(), experts.data(), weights.data()));
  };
  const auto all = static_cast<int>(tokens.size());
  const std::vector<float> chosen_freely = rank.logits(tokens, all);
  reference::Routing routed;
  reference::logits(model, tokens, reference::exact, nullptr, &routed);
  const ChunkChoices wanted = choices_of(routed);
  EXPECT_EQ(told.experts, wanted.experts);
  for (std::size_t l = 0; l < told.weights.size(); ++l) {
    for (std::size_t i = 0; i < told.weights[l].size(); ++i) {
      ASSERT_NEAR(told.weights[l][i], wanted.weights[l][i], 1e-4) << "layer " << l;
    }
  }

  // Its own choices again, with and without their weights, change no bit.
  const ChunkChoices own = told;
  for (const bool with_weights : {true, false}) {
    rank.forced = [&](int layer) {
      const auto l = static_cast<std::size_t>(layer);
      return compute::ForcedChoices{own.experts[l].data(),
                                    with_weights ? own.weights[l].data() : nullptr};
    };
    EXPECT_EQ(rank.logits(tokens, all), chosen_freely) << with_weights;
    EXPECT_EQ(told.experts, own.experts);
    EXPECT_EQ(told.weights, own.weights);
  }

  // Others are followed.
  reference::Forced forced{made_choices(shape, tokens.size()), true};
  const ChunkChoices made = choices_of(forced.choices);
  for (const bool with_weights : {true, false}) {
    forced.own_weights = with_weights;
    rank.forced = [&](int layer) {
      const auto l = static_cast<std::size_t>(layer);
      return compute::ForcedChoices{made.experts[l].data(),
                                    with_weights ? made.weights[l].data() : nullptr};
    };
    EXPECT_LT(largest_difference(rank.log_probs(tokens, all),
                                 reference::log_probs(model, tokens, reference::exact, &forced)),
              1e-4)
        << with_weights;
    EXPECT_EQ(told.experts, made.experts);
    if (with_weights) {
      EXPECT_EQ(told.weights, made.weights);
    }
  }
  rank.forced = [](int) { return compute::ForcedChoices{}; };
  EXPECT_EQ(rank.logits(tokens, all), chosen_freely);
}

}  // namespace atl::testing
