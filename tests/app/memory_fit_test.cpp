// By which division ranks have memory for their parts of a model, decided without any rank.

#include "app/run/memory_fit.hpp"

#include <gtest/gtest.h>

#include <algorithm>

#include "tests/tiny_model.hpp"

namespace atl::testing {
namespace {

constexpr int num_ranks = 8;

/// One large expert: what a rank takes falls with the ranks that share it.
ModelShape one_expert() {
  ModelShape shape = tiny_shape();
  shape.num_experts = 1;
  shape.top_k = 1;
  shape.moe_intermediate = 4800;
  return shape;
}

JobLayout divided(const Division& division) {
  return {division, std::vector<int>(num_ranks, 0)};
}

double needed(const RunOptions& options, const ModelShape& shape, const Division& division) {
  const JobLayout job = divided(division);
  std::int64_t most = 0;
  for (int rank = 0; rank < num_ranks; ++rank) {
    const RankNeeds needs =
        needs_of_rank(options, {shape, DType::bfloat16, job}, rank, /*cuda=*/false);
    most = std::max(most, needs.plan.total());
  }
  return static_cast<double>(most);
}

bool fits_in(double bytes, const RunOptions& options, const ModelShape& shape,
             const Division& division) {
  const JobLayout job = divided(division);
  return fits(options, {shape, DType::bfloat16, job}, {bytes, "", false, true});
}

TEST(MemoryFit, ExpertsAreCutOverAsManyRanksAsMemoryDemands) {
  const RunOptions options;
  const ModelShape shape = one_expert();
  const auto open = open_divisions(options, shape, num_ranks);
  ASSERT_EQ(open.size(), 4U);
  double before = 0;
  for (std::size_t wanted = 0; wanted < open.size(); ++wanted) {
    EXPECT_EQ(open[wanted].expert_tp, 1 << wanted);
    const double bytes = needed(options, shape, open[wanted]);
    if (wanted > 0) {
      EXPECT_LT(bytes, before);
    }
    before = bytes;
    const auto first = std::find_if(open.begin(), open.end(), [&](const Division& division) {
      return fits_in(bytes, options, shape, division);
    });
    EXPECT_EQ(first - open.begin(), static_cast<std::ptrdiff_t>(wanted));
    EXPECT_FALSE(fits_in(bytes - 1, options, shape, open[wanted]));
  }
}

TEST(MemoryFit, WhatIsAskedForStays) {
  const ModelShape shape = one_expert();
  RunOptions options;
  options.expert_tp = 2;
  EXPECT_EQ(open_divisions(options, shape, num_ranks), std::vector{Division{.expert_tp = 2}});
  options = {};
  options.layout = "ep8";
  EXPECT_EQ(open_divisions(options, shape, num_ranks), std::vector{Division{}});
  options = {};
  options.placement = "a file of 8 ranks";
  EXPECT_EQ(open_divisions(options, shape, num_ranks), std::vector{Division{}});
  options = {};
  options.slots = 1;  // with 3 experts the 4 ranks of --expert-tp 2 have places for all, 2 do not
  ModelShape three = shape;
  three.num_experts = 3;
  EXPECT_EQ(open_divisions(options, three, num_ranks),
            (std::vector{Division{}, Division{.expert_tp = 2}}));
}

TEST(MemoryFit, SaysWhatWouldFit) {
  const ModelShape shape = one_expert();
  RunOptions options;
  const auto advice = [&](double bytes) {
    return what_would_fit(options, shape, DType::bfloat16, num_ranks, {bytes, "", false, true});
  };
  EXPECT_EQ(advice(needed(options, shape, {.expert_tp = 4})), "--expert-tp 4 would fit");
  options.division.replicas = 8;
  options.expert_tp = 1;
  EXPECT_EQ(advice(needed(options, shape, {.replicas = 8, .expert_tp = 1}) - 1),
            "--replicas 4 --expert-tp 2 would fit");
  options.slots = 1;
  EXPECT_EQ(advice(1), "use more ranks, a smaller --step-tokens, or a --dtype of fewer bytes");
}

TEST(MemoryFit, BuffersInHostMemoryCountWhereItIsLimited) {
  const compute::MemoryPlan plan{.weights = 5, .kv_cache = 7, .workspace = 11};
  EXPECT_EQ(must_fit(plan, {100, "cgroup", false, false}), 5);
  EXPECT_EQ(must_fit(plan, {100, "--memory-limit", false, true}), 23);
  EXPECT_EQ(must_fit(plan, {100, "", true, false}), 23);
}

}  // namespace
}  // namespace atl::testing
