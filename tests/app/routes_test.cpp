// Every layout, placement and route gives the bytes that one rank alone gives.
#include <gtest/gtest.h>

#include <random>

#include "tests/in_process_ranks.hpp"

namespace atl {
namespace {

using compute::RouteTo;
using testing::InProcessRanks;

std::vector<int> nodes(const std::vector<int>& sizes) {
  std::vector<int> node_of;
  for (std::size_t node = 0; node < sizes.size(); ++node) {
    node_of.insert(node_of.end(), static_cast<std::size_t>(sizes[node]), static_cast<int>(node));
  }
  return node_of;
}

/// One to three replicas of each expert, anywhere, another way in every layer.
Placement random_placement(const ModelShape& shape, const Layout& layout, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<std::vector<std::vector<int>>> layers(static_cast<std::size_t>(shape.num_layers));
  std::vector<int> ranks(static_cast<std::size_t>(layout.num_ranks()));
  std::iota(ranks.begin(), ranks.end(), 0);
  for (auto& layer : layers) {
    for (int expert = 0; expert < shape.num_experts; ++expert) {
      std::shuffle(ranks.begin(), ranks.end(), random);
      const std::size_t count = std::min<std::size_t>(1 + random() % 3, ranks.size());
      layer.emplace_back(ranks.begin(), ranks.begin() + static_cast<std::ptrdiff_t>(count));
    }
  }
  return explicit_placement(shape, layout, layers);
}

class Routes : public ::testing::TestWithParam<DType> {
 protected:
  /// Sequences of different lengths, some ranks without one.
  static std::vector<std::vector<std::int32_t>> sequences(int ranks, int vocab) {
    std::vector<std::vector<std::int32_t>> all;
    for (int r = 0; r < ranks; ++r) {
      const int length = r % 4 == 1 ? 0 : 3 + r * 7 % 29;
      all.push_back(
          testing::Random(static_cast<unsigned>(r) + 1, DType::float32).tokens(length, vocab));
    }
    return all;
  }

  static void expect_bytes_of_one_rank(const ModelShape& shape, const Layout& layout,
                                       const Placement& placement) {
    const auto model = testing::random_model(shape, GetParam(), 5);
    const auto tokens = sequences(layout.num_ranks(), shape.vocab);
    InProcessRanks ranks(model, layout, placement, GetParam());
    const auto flat = ranks.run(tokens, RouteTo::experts);
    InProcessRanks alone(model, one_node(1), even_placement(shape, one_node(1)), GetParam());
    for (std::size_t r = 0; r < tokens.size(); ++r) {
      ASSERT_EQ(flat[r], alone.run({tokens[r]}, RouteTo::experts)[0]) << "rank " << r;
    }
    if (layout.num_nodes() == 1) return;
    const std::int64_t rows_of_flat = ranks.rows_across();
    ASSERT_EQ(ranks.run(tokens, RouteTo::nodes), flat);
    EXPECT_LE(ranks.rows_across(), rows_of_flat);
  }
};

TEST_P(Routes, BytesAreThoseOfOneRank) {
  const ModelShape shape = testing::tiny_shape();
  for (const auto& sizes :
       std::vector<std::vector<int>>{{3}, {2, 2}, {1, 1, 1, 1}, {3, 5, 1}, {1, 4}, {6, 6}}) {
    const Layout layout = make_layout(nodes(sizes));
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
        make_layout(nodes(seed % 2 == 0 ? std::vector<int>{2, 3} : std::vector<int>{2, 2, 2}));
    expect_bytes_of_one_rank(shape, layout, random_placement(shape, layout, seed));
  }
}

INSTANTIATE_TEST_SUITE_P(Types, Routes,
                         ::testing::Values(DType::float32, DType::bfloat16, DType::float16),
                         [](const auto& info) { return std::string(name_of(info.param)); });

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
  const Layout layout = make_layout(nodes({2, 2, 2}));
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

}  // namespace
}  // namespace atl
