#pragma once
// What every backend must do with any layout, placement and route: give the bytes of one rank.

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

#include "tests/in_process_ranks.hpp"

namespace atl::testing {

/// Consecutive ranks on nodes of these sizes.
inline Layout layout_of_nodes(const std::vector<int>& sizes) {
  std::vector<int> node_of;
  for (std::size_t node = 0; node < sizes.size(); ++node) {
    node_of.insert(node_of.end(), static_cast<std::size_t>(sizes[node]), static_cast<int>(node));
  }
  return make_layout(node_of);
}

/// One to three replicas of each expert, anywhere, another way in every layer.
inline Placement random_placement(const ModelShape& shape, const Layout& layout, unsigned seed) {
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

/// A sequence for each rank, of different lengths; some ranks have none.
inline std::vector<std::vector<std::int32_t>> sequences_of_ranks(int ranks, int vocab) {
  std::vector<std::vector<std::int32_t>> all;
  for (int r = 0; r < ranks; ++r) {
    const int length = r % 4 == 1 ? 0 : 3 + r * 7 % 29;
    all.push_back(Random(static_cast<unsigned>(r) + 1, DType::float32).tokens(length, vocab));
  }
  return all;
}

/// Both routes, and the second time in the same buffers.
inline void expect_bytes_of_one_rank(const ModelShape& shape, const Layout& layout,
                                     const Placement& placement, DType dtype,
                                     const HowRanksRun& how = {}) {
  using compute::RouteTo;
  const auto model = random_model(shape, dtype, 5);
  const auto tokens = sequences_of_ranks(layout.num_ranks(), shape.vocab);
  InProcessRanks ranks(model, layout, placement, dtype, how);
  const auto flat = ranks.run(tokens, RouteTo::experts);
  InProcessRanks alone(model, one_node(1), even_placement(shape, one_node(1)), dtype, how);
  for (std::size_t r = 0; r < tokens.size(); ++r) {
    ASSERT_EQ(flat[r], alone.run({tokens[r]}, RouteTo::experts)[0]) << "rank " << r;
  }
  if (layout.num_nodes() == 1) return;
  const std::int64_t rows_of_flat = ranks.rows_across();
  ASSERT_EQ(ranks.run(tokens, RouteTo::nodes), flat);
  EXPECT_LE(ranks.rows_across(), rows_of_flat);
  ASSERT_EQ(ranks.run(tokens, RouteTo::experts), flat);
}

}  // namespace atl::testing
