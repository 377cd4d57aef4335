#include "app/model/routing_statistics.hpp"

#include <gtest/gtest.h>

#include <array>
#include <cmath>

namespace atl {
namespace {

using Token = std::array<std::int32_t, 2>;

TEST(RoutingStatistics, EvenLoadsAreEven) {
  RoutingStatistics layer(4);
  for (const Token& token : {Token{0, 1}, Token{2, 3}}) layer.add(token);
  EXPECT_EQ(layer.tokens(), 2);
  EXPECT_EQ(layer.loads(), (std::vector<std::int64_t>{1, 1, 1, 1}));
  EXPECT_DOUBLE_EQ(layer.largest_over_mean(), 1);
  EXPECT_DOUBLE_EQ(layer.variation(), 0);
  EXPECT_DOUBLE_EQ(layer.effective_experts(), 4);
}

TEST(RoutingStatistics, SkewAndPairsAreCounted) {
  RoutingStatistics layer(4);
  for (const Token& token : {Token{0, 2}, Token{2, 0}, Token{0, 1}, Token{2, 0}}) layer.add(token);
  EXPECT_EQ(layer.loads(), (std::vector<std::int64_t>{4, 1, 3, 0}));
  EXPECT_DOUBLE_EQ(layer.largest_over_mean(), 2);
  EXPECT_DOUBLE_EQ(layer.variation(), std::sqrt((4.0 + 1 + 1 + 4) / 4) / 2);
  const double entropy = 0.5 * std::log(2) + 0.125 * std::log(8) + 0.375 * std::log(8.0 / 3);
  EXPECT_NEAR(layer.effective_experts(), std::exp(entropy), 1e-12);
  const auto pair = layer.commonest_pair();
  EXPECT_EQ(pair.a, 0);
  EXPECT_EQ(pair.b, 2);
  EXPECT_EQ(pair.tokens, 3);
  EXPECT_DOUBLE_EQ(pair.lift, 3.0 * 4 / (4 * 3));
}

TEST(RoutingStatistics, NothingIsNothing) {
  const RoutingStatistics layer(3);
  EXPECT_EQ(layer.largest_over_mean(), 0);
  EXPECT_EQ(layer.variation(), 0);
  EXPECT_EQ(layer.effective_experts(), 0);
  EXPECT_EQ(layer.commonest_pair().a, -1);
}

TEST(RoutingStatistics, OneExpertATokenMakesNoPairs) {
  RoutingStatistics layer(3);
  const std::int32_t expert = 1;
  layer.add({&expert, 1});
  EXPECT_EQ(layer.commonest_pair().a, -1);
  EXPECT_DOUBLE_EQ(layer.effective_experts(), 1);
}

}  // namespace
}  // namespace atl
