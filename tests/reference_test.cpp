// The oracle itself, against values worked out by hand or known from elsewhere.

#include "tests/reference.hpp"

#include <gtest/gtest.h>

#include <numbers>

namespace atl::reference {
namespace {

TEST(Reference, RoundsToBfloat16TiesToEven) {
  EXPECT_EQ(to_bfloat16(1.0), 1.0);
  EXPECT_EQ(to_bfloat16(1.0 + 1.0 / 256), 1.0);              // halfway, down to even
  EXPECT_EQ(to_bfloat16(1.0 + 3.0 / 256), 1.0 + 4.0 / 256);  // halfway, up to even
  EXPECT_EQ(to_bfloat16(-1.01), -(1.0 + 1.0 / 128));
  EXPECT_EQ(to_bfloat16(0.0), 0.0);
}

TEST(Reference, RoundsToFloat16AsTheCompilerDoes) {
  for (const double value : {0.1, -3.3333, 1000.77, 6.1e-5, 3e-7, 0.99999}) {
    EXPECT_EQ(to_float16(value), static_cast<double>(static_cast<_Float16>(value))) << value;
  }
}

TEST(Reference, RmsNormHasUnitRootMeanSquare) {
  const Vector y = rms_norm({3, -4, 12, 5}, {1, 1, 1, 2}, 0);
  EXPECT_NEAR(y[0] / 3, y[1] / -4, 1e-15);
  EXPECT_NEAR(y[3] / 5, 2 * y[0] / 3, 1e-15);
  EXPECT_NEAR(y[0], 3 / std::sqrt((9 + 16 + 144 + 25) / 4.0), 1e-15);
}

TEST(Reference, RopeTurnsPairsByTheirFrequency) {
  Vector heads = {1, 1, 0, 0};  // pairs (0, 2) and (1, 3); frequencies 1 and 1/100
  rope(heads, 4, 3, 10000);
  EXPECT_NEAR(heads[0], std::cos(3), 1e-15);
  EXPECT_NEAR(heads[2], std::sin(3), 1e-15);
  EXPECT_NEAR(heads[1], std::cos(0.03), 1e-15);
  EXPECT_NEAR(heads[3], std::sin(0.03), 1e-15);
}

TEST(Reference, RopeMakesScoresDependOnDistanceOnly) {
  const auto score = [](int a, int b) {
    Vector q = {0.3, -1.2, 0.7, 0.4};
    Vector k = {1.1, 0.2, -0.5, 0.9};
    rope(q, 4, a, 10000);
    rope(k, 4, b, 10000);
    return dot(q, k);
  };
  EXPECT_NEAR(score(7, 4), score(107, 104), 1e-12);
  EXPECT_GT(std::abs(score(7, 4) - score(7, 5)), 1e-3);
}

TEST(Reference, AttentionIsCausalAndSharesKeysWithinAGroup) {
  ModelShape shape;
  shape.num_heads = 2;
  shape.num_kv_heads = 1;
  shape.head_dim = 2;
  const Matrix q = {{1, 0, 0, 1}, {1, 0, 0, 1}};
  const Matrix k = {{std::numbers::sqrt2, 0}, {0, 0}};
  const Matrix v = {{1, 2}, {3, 6}};
  const Matrix out = attention(q, k, v, shape);
  EXPECT_EQ(out[0], (Vector{1, 2, 1, 2}));  // sees itself only
  const double e = std::exp(1.0);
  EXPECT_NEAR(out[1][0], (e * 1 + 3) / (e + 1), 1e-15);
  EXPECT_NEAR(out[1][2], 2, 1e-15);  // equal scores: the mean
}

TEST(Reference, RouterBreaksTiesToTheLowerIndexAndSortsByWeight) {
  ModelShape shape;
  shape.top_k = 3;
  shape.norm_topk_prob = false;
  const Matrix router = {{1}, {2}, {0}, {2}};
  auto choices = route(router, {1}, shape);
  EXPECT_EQ(choices[0].expert, 1);
  EXPECT_EQ(choices[1].expert, 3);
  EXPECT_EQ(choices[2].expert, 0);
  const double total = 2 * std::exp(2) + std::exp(1) + 1;
  EXPECT_NEAR(choices[0].weight, std::exp(2) / total, 1e-15);
  shape.norm_topk_prob = true;
  choices = route(router, {1}, shape);
  EXPECT_NEAR(choices[0].weight + choices[1].weight + choices[2].weight, 1, 1e-15);
}

TEST(Reference, OffsetsAndGroupsDecideTheChoiceAndScoresTheWeights) {
  ModelShape shape;
  shape.top_k = 2;
  shape.router.score = RouterScore::sigmoid;
  shape.router.groups = 2;
  shape.router.top_groups = 1;
  shape.router.group_score = GroupScore::two_best;
  shape.router.scale = 3;
  const Matrix router = {{0}, {0}, {2}, {-2}};  // scores 0.5, 0.5 | 0.88, 0.12
  auto choices = route(router, {1}, shape);     // both groups sum to 1: the first
  EXPECT_EQ(choices[0].expert, 0);
  EXPECT_EQ(choices[1].expert, 1);
  EXPECT_NEAR(choices[0].weight, 1.5, 1e-15);
  choices = route(router, {1}, shape, {}, {0, 0, 0, 0.9});
  EXPECT_EQ(choices[0].expert, 3);  // by its offset, which its weight does not have
  EXPECT_NEAR(choices[1].weight, 3 / (1 + std::exp(-2)), 1e-15);
  EXPECT_NEAR(choices[0].weight + choices[1].weight, 3, 1e-15);
  shape.router.group_score = GroupScore::best;
  EXPECT_EQ(route(router, {1}, shape)[0].expert, 2);
  shape.router = {};
  shape.router.score = RouterScore::softmax_of_chosen;
  choices = route(router, {1}, shape, {0, 1, 0, 0});
  EXPECT_NEAR(choices[0].weight, std::exp(2) / (std::exp(2) + std::exp(1)), 1e-15);
}

TEST(Reference, WindowsHideAndSinksTakeAShare) {
  ModelShape shape;
  shape.num_heads = shape.num_kv_heads = 1;
  shape.head_dim = 2;
  const Matrix zeros(3, Vector{0, 0});
  const Matrix v = {{8, 0}, {4, 0}, {2, 0}};
  const Matrix windowed = attention(zeros, zeros, v, shape, {1, 2, false, 0}, {});
  EXPECT_EQ(windowed[0][0], 8);
  EXPECT_EQ(windowed[2][0], 3);  // of itself and the one before
  const Matrix sunk = attention(zeros, zeros, v, shape, {1, 2, true, 0}, {std::log(2.0)});
  EXPECT_NEAR(sunk[2][0], 1.5, 1e-15);  // the sink counts as much as both
}

TEST(Reference, ForcedExpertsGetTheRoutersWeightsInTheirOwnOrder) {
  ModelShape shape;
  shape.top_k = 2;
  shape.norm_topk_prob = false;
  const Matrix router = {{1}, {2}, {0}};
  auto choices = route_forced(router, {1}, shape, {{2, 0.5}, {1, 0.5}});
  const double total = std::exp(2) + std::exp(1) + 1;
  EXPECT_EQ(choices[0].expert, 2);
  EXPECT_EQ(choices[1].expert, 1);
  EXPECT_NEAR(choices[0].weight, 1 / total, 1e-15);
  EXPECT_NEAR(choices[1].weight, std::exp(2) / total, 1e-15);
  shape.norm_topk_prob = true;
  choices = route_forced(router, {1}, shape, {{2, 0.5}, {1, 0.5}});
  EXPECT_NEAR(choices[0].weight, 1 / (1 + std::exp(2)), 1e-15);
  EXPECT_NEAR(choices[0].weight + choices[1].weight, 1, 1e-15);
}

TEST(Reference, AForcedChoiceIsSummedWithTheWeightThatStandsThere) {
  ModelShape shape;
  shape.top_k = 1;
  shape.activation = Activation::gelu_tanh;
  Layer layer;
  layer.ffn_norm = {1};
  layer.router = {{1}, {2}};
  layer.experts = {{{{1}}, {}, {{1}}}, {{{1}}, {}, {{10}}}};
  const double down = 0.841191990607477;  // gelu(1)
  Matrix x = {{4}};                       // its norm is 1
  Routing routed(1);
  const Forced own{{{{{0, 0.25}}}}, true};
  ffn_layer(x, layer, false, shape, exact, 0, &own, &routed);
  EXPECT_NEAR(x[0][0], 4 + 0.25 * down, 1e-5);
  EXPECT_EQ(routed[0][0][0].expert, 0);
  EXPECT_EQ(routed[0][0][0].weight, 0.25);
  x = {{4}};
  const Forced of_router{{{{{0, 0.25}}}}, false};
  ffn_layer(x, layer, false, shape, exact, 0,
            &of_router);  // one choice: its weight is rescaled to 1
  EXPECT_NEAR(x[0][0], 4 + down, 1e-5);
  x = {{4}};
  ffn_layer(x, layer, false, shape, exact);
  EXPECT_NEAR(x[0][0], 4 + 10 * down, 1e-5);
}

TEST(Reference, MlpsUseTheirActivation) {
  const Mlp weights = {{{1}}, {{2}}, {{1}}};
  EXPECT_NEAR(mlp(weights, {1}, Activation::gelu_tanh, exact)[0], 0.841191990607477, 1e-12);
  EXPECT_NEAR(mlp(weights, {1}, Activation::swiglu, exact)[0], 2 / (1 + std::exp(-2)), 1e-15);
  ModelShape clamped;
  clamped.activation = Activation::swiglu_clamped;
  clamped.clamp_limit = 1.5F;
  clamped.clamp_alpha = 2;
  EXPECT_NEAR(mlp(weights, {1}, clamped, exact)[0], 2 * 1.5 / (1 + std::exp(-3)), 1e-15);
}

}  // namespace
}  // namespace atl::reference
