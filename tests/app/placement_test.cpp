#include "app/plan/placement.hpp"

#include <gtest/gtest.h>

#include <algorithm>

#include "compute/error.hpp"
#include "tests/app/plan_shapes.hpp"

namespace atl {
namespace {

ModelShape with_experts(int experts, int layers = 3, int dense = 1) {
  ModelShape shape = shape_with(layers, dense);
  shape.num_experts = experts;
  return shape;
}

TEST(Placement, SharesDifferByAtMostOne) {
  for (int experts = 1; experts <= 20; ++experts) {
    for (int ranks = 1; ranks <= experts; ++ranks) {
      const Placement placement = even_placement(with_experts(experts), one_node(ranks));
      const LayerPlacement& layer = placement.of(1);
      std::size_t fewest = 1000;
      std::size_t most = 0;
      std::vector<int> owner;
      for (int rank = 0; rank < ranks; ++rank) {
        fewest = std::min(fewest, layer.experts_of(rank).size());
        most = std::max(most, layer.experts_of(rank).size());
        owner.insert(owner.end(), layer.experts_of(rank).size(), rank);
      }
      EXPECT_LE(most - fewest, 1U);
      EXPECT_GE(fewest, 1U);
      ASSERT_EQ(owner.size(), static_cast<std::size_t>(experts));
      for (std::size_t e = 0; e < owner.size(); ++e) {
        EXPECT_EQ(layer.ranks_of_expert()[e], std::vector<int>{owner[e]});
      }
    }
  }
}

TEST(Placement, SpareRanksHoldReplicasEvenly) {
  for (const int ranks : {17, 24, 32, 33}) {
    const LayerPlacement layer = even_placement(with_experts(16), one_node(ranks)).of(2);
    for (const auto& holders : layer.ranks_of_expert()) {
      EXPECT_GE(holders.size(), static_cast<std::size_t>(ranks / 16));
      EXPECT_LE(holders.size(), static_cast<std::size_t>(ranks / 16 + 1));
    }
    for (int rank = 0; rank < ranks; ++rank) EXPECT_EQ(layer.experts_of(rank).size(), 1U);
  }
}

TEST(Placement, SlotsGiveReplicasOnFewRanksToo) {
  const LayerPlacement layer = even_placement(with_experts(6), one_node(4), 3).of(1);
  for (int rank = 0; rank < 4; ++rank) EXPECT_EQ(layer.experts_of(rank).size(), 3U);
  for (const auto& holders : layer.ranks_of_expert()) EXPECT_EQ(holders.size(), 2U);
  EXPECT_THROW(even_placement(with_experts(6), one_node(2), 2), Error);  // 4 places
  EXPECT_THROW(even_placement(with_experts(6), one_node(2), 7), Error);  // twice on a rank
}

TEST(Placement, PlacesFollowNodesThenRanksThenExperts) {
  const Layout layout = make_layout({0, 1, 0, 1});
  const LayerPlacement layer({{3, 0}, {2}, {1, 3}, {0}}, layout);
  std::vector<std::pair<int, int>> order;
  for (const Replica& replica : layer.replicas()) order.emplace_back(replica.rank, replica.expert);
  EXPECT_EQ(order,
            (std::vector<std::pair<int, int>>{{0, 0}, {0, 3}, {2, 1}, {1, 2}, {3, 0}, {3, 2}}));
  EXPECT_EQ(layer.first_place_of_node(), (std::vector<std::int32_t>{0, 3, 6}));
  EXPECT_EQ(layer.first_place_of(1), 3);
}

TEST(Placement, LayersWithTheSameOneShareIt) {
  const ModelShape shape = with_experts(2, 4, 1);
  const Placement placement =
      explicit_placement(shape, one_node(2), {{}, {{0}, {1}}, {{1}, {0}}, {{0}, {1}}});
  EXPECT_EQ(placement.kind_of_layer, (std::vector<std::int32_t>{-1, 0, 1, 0}));
  EXPECT_EQ(placement.part_of(1, shape, one_node(2)).experts,
            (std::vector<std::vector<std::int32_t>>{{}, {1}, {0}, {1}}));
}

TEST(Placement, WrongOnesAreNamed) {
  const ModelShape shape = with_experts(2, 2, 1);
  const auto refusal = [&](const std::vector<std::vector<int>>& ranks) {
    try {
      explicit_placement(shape, one_node(2), {{}, ranks});
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_NE(refusal({{0}, {}}).find("gives expert 1 of layer 1 no place"), std::string::npos);
  EXPECT_NE(refusal({{0}, {2}}).find("expert 1 of layer 1 on rank 2"), std::string::npos);
  EXPECT_NE(refusal({{0}, {-1}}).find("rank -1"), std::string::npos);
  EXPECT_NE(refusal({{0}, {1, 1}}).find("twice on rank 1"), std::string::npos);
  EXPECT_NE(refusal({{0}}).find("has 1 experts, the model has 2"), std::string::npos);
}

TEST(Layout, RailsAreGroupsWhereNodesAreEven) {
  const Layout even = make_layout({0, 0, 1, 1, 2, 2});
  EXPECT_EQ(even.of(Share::rail).members, (std::vector<std::vector<int>>{{0, 2, 4}, {1, 3, 5}}));
  EXPECT_EQ(even.receiver(1, 2), 5);
  const Layout uneven = make_layout({0, 0, 0, 1, 2, 2});
  EXPECT_EQ(uneven.of(Share::rail).members.size(), 1U);
  EXPECT_EQ(uneven.receiver(2, 1), 3);
  EXPECT_EQ(uneven.receiver(2, 2), 4);
  EXPECT_EQ(uneven.receiver(5, 0), 1);
}

}  // namespace
}  // namespace atl
