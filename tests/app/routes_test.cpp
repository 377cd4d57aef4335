// Every layout, placement and route gives the bytes that one rank alone gives.
#include <gtest/gtest.h>

#include "tests/route_checks.hpp"

namespace atl {
namespace {

using testing::layout_of_nodes;
using testing::random_placement;

class Routes : public ::testing::TestWithParam<DType> {
 protected:
  static void expect_bytes_of_one_rank(const ModelShape& shape, const Layout& layout,
                                       const Placement& placement) {
    testing::expect_bytes_of_one_rank(shape, layout, placement, GetParam());
  }
};

TEST_P(Routes, BytesAreThoseOfOneRank) {
  const ModelShape shape = testing::tiny_shape();
  for (const auto& sizes :
       std::vector<std::vector<int>>{{3}, {2, 2}, {1, 1, 1, 1}, {3, 5, 1}, {1, 4}, {6, 6}}) {
    const Layout layout = layout_of_nodes(sizes);
    expect_bytes_of_one_rank(shape, layout, even_placement(shape, layout));
  }
}

TEST_P(Routes, RanksOfANodeNeedNotFollowEachOther) {
  const ModelShape shape = testing::tiny_shape();
  for (const auto& node_of : std::vector<std::vector<int>>{{0, 1, 0, 1}, {0, 1, 1, 2, 0, 2, 1}}) {
    const Layout layout = make_layout(node_of);
    expect_bytes_of_one_rank(shape, layout, even_placement(shape, layout));
  }
}

TEST_P(Routes, AnyPlacementAndReplicas) {
  for (unsigned seed = 0; seed < 6; ++seed) {
    ModelShape shape = testing::tiny_shape();
    shape.top_k = 1 + static_cast<int>(seed % 4);
    const Layout layout =
        layout_of_nodes(seed % 2 == 0 ? std::vector<int>{2, 3} : std::vector<int>{2, 2, 2});
    expect_bytes_of_one_rank(shape, layout, random_placement(shape, layout, seed));
  }
}

INSTANTIATE_TEST_SUITE_P(Types, Routes,
                         ::testing::Values(DType::float32, DType::bfloat16, DType::float16),
                         [](const auto& type) { return std::string(name_of(type.param)); });

/// Choices of one token, as experts.
std::vector<std::int32_t> chosen_ranks(const compute::ExpertPlaces& places,
                                       const LayerPlacement& placement,
                                       const std::vector<std::int32_t>& experts, int token) {
  std::vector<std::int32_t> chosen(experts.size());
  compute::choose_replicas(places.table(), experts.data(), static_cast<int>(experts.size()), token,
                           chosen.data());
  std::vector<std::int32_t> ranks;
  for (const std::int32_t c : chosen) {
    const auto& replica = places.replicas[static_cast<std::size_t>(c)];
    ranks.push_back(placement.replicas()[static_cast<std::size_t>(replica.place)].rank);
  }
  return ranks;
}

TEST(ChooseReplicas, WhereTheTokenGoesAnyhowThenNearThenInTurn) {
  const Layout layout = layout_of_nodes({2, 2, 2});
  //                               0       1    2       3          4
  const LayerPlacement placement({{1, 4}, {5}, {0, 1}, {2, 3, 4}, {3, 5}}, layout);
  const auto places = placement.places_seen_by(0, layout);
  using Ranks = std::vector<std::int32_t>;
  EXPECT_EQ(chosen_ranks(places, placement, {0, 1}, 0), (Ranks{4, 5}));  // node 2 anyhow
  EXPECT_EQ(chosen_ranks(places, placement, {0}, 0), (Ranks{1}));        // own node
  EXPECT_EQ(chosen_ranks(places, placement, {2}, 0), (Ranks{0}));        // own rank
  EXPECT_EQ(chosen_ranks(places, placement, {2, 0}, 0), (Ranks{0, 1}));
  EXPECT_EQ(chosen_ranks(places, placement, {3, 1}, 0), (Ranks{4, 5}));
  std::map<std::int32_t, int> taken;
  for (int token = 0; token < 30; ++token) {
    ++taken[chosen_ranks(places, placement, {3}, token).front()];
  }
  EXPECT_EQ(taken, (std::map<std::int32_t, int>{{2, 10}, {3, 10}, {4, 10}}));
}

TEST(ChooseReplicas, ASlowRankGetsItsShareAndNothingWhereThatIsNone) {
  const Layout layout = layout_of_nodes({2, 2});
  //                               0       1    2       3
  const LayerPlacement placement({{0, 3}, {3}, {2, 3}, {0, 1}}, layout);
  const auto taken_of = [&](std::int32_t expert, const std::vector<std::int32_t>& shares) {
    const auto places = placement.places_seen_by(0, layout, shares);
    std::map<std::int32_t, int> taken;
    for (int token = 0; token < 640; ++token) {
      ++taken[chosen_ranks(places, placement, {expert}, token).front()];
    }
    return taken;
  };
  using Taken = std::map<std::int32_t, int>;
  EXPECT_EQ(taken_of(2, {64, 64, 64, 64}), (Taken{{2, 320}, {3, 320}}));
  EXPECT_EQ(taken_of(2, {64, 64, 64, 0}), (Taken{{2, 640}}));
  EXPECT_EQ(taken_of(0, {0, 64, 64, 64}), (Taken{{3, 640}}));  // though it is this rank
  EXPECT_EQ(taken_of(0, {64, 64, 64, 0}), (Taken{{0, 640}}));
  EXPECT_EQ(taken_of(1, {64, 64, 64, 0}), (Taken{{3, 640}}));  // no other has it
  EXPECT_EQ(taken_of(3, {0, 0, 64, 64}), (Taken{{0, 640}}));   // as if both were whole
  const Taken half = taken_of(2, {64, 64, 64, 32});
  EXPECT_NEAR(half.at(3), 160, 10);
}

}  // namespace
}  // namespace atl
