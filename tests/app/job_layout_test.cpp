#include "app/plan/job_layout.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>

#include "app/config_layout.hpp"
#include "app/plan/part.hpp"
#include "app/plan/placement.hpp"
#include "compute/error.hpp"
#include "tests/app/plan_shapes.hpp"

namespace atl {
namespace {

std::vector<int> nodes_of(int ranks, int per_node) {
  std::vector<int> nodes;
  for (int rank = 0; rank < ranks; ++rank) nodes.push_back(rank / per_node);
  return nodes;
}

/// That a grouping has each rank once, in groups of `size`.
void expect_groups(const Grouping& grouping, int ranks, int size) {
  EXPECT_EQ(static_cast<int>(grouping.members.size()), ranks / size);
  std::set<int> seen;
  for (const std::vector<int>& members : grouping.members) {
    EXPECT_EQ(static_cast<int>(members.size()), size);
    seen.insert(members.begin(), members.end());
  }
  EXPECT_EQ(static_cast<int>(seen.size()), ranks);
}

TEST(JobLayout, EveryRankIsInOneGroupOfEachKind) {
  for (const Division& d : {Division{}, Division{2, 1, 8, 1}, Division{1, 2, 8, 8},
                            Division{2, 2, 2, 4}, Division{1, 1, 16, 1}, Division{4, 4, 1, 4}}) {
    const int ranks = 64;
    const JobLayout layout(d, nodes_of(ranks, 8));
    const int stage = ranks / d.replicas / d.pp;
    expect_groups(layout.of(Share::network), ranks, ranks / d.replicas);
    expect_groups(layout.of(Share::stage), ranks, stage);
    expect_groups(layout.of(Share::owner), ranks, d.tp);
    expect_groups(layout.of(Share::holder), ranks, d.expert_tp);
    expect_groups(layout.of(Share::exchange), ranks, stage / d.expert_tp);
    expect_groups(layout.of(Share::sequences), ranks, d.tp * d.pp);
    expect_groups(layout.of(Share::pipe), ranks, d.pp);
    EXPECT_EQ(layout.num_owners(), ranks / d.pp / d.tp);
    int speakers = 0;
    for (int rank = 0; rank < ranks; ++rank) speakers += layout.speaks(rank) ? 1 : 0;
    EXPECT_EQ(speakers, layout.num_owners());
  }
}

TEST(JobLayout, OneNetworkOf64OnTwice8NodesOf8) {
  const JobLayout layout({2, 1, 8, 1}, nodes_of(128, 8));
  EXPECT_EQ(layout.ranks_of_exchange(), 64);
  const std::vector<int> eight = {64, 65, 66, 67, 68, 69, 70, 71};
  EXPECT_EQ(layout.of(Share::owner).group_with(70), eight);
  EXPECT_EQ(layout.exchange_of(70).num_nodes(), 8);  // counted anew in each network
  EXPECT_EQ(layout.exchange_of(70).of(Share::rail).group_with(0).size(), 8U);
}

TEST(JobLayout, StagesForwardAlongTheSamePlace) {
  const JobLayout layout({1, 2, 8, 8}, nodes_of(16, 8));
  EXPECT_EQ(layout.of(Share::pipe).group_with(3), (std::vector<int>{3, 11}));
  EXPECT_EQ(layout.stage_of(3), 0);
  EXPECT_EQ(layout.stage_of(11), 1);
  EXPECT_EQ(layout.ranks_of_exchange(), 1);  // no row of an expert goes anywhere
  EXPECT_TRUE(layout.speaks(0));
  EXPECT_FALSE(layout.speaks(8));
}

TEST(JobLayout, LayersAndRowsAreAllGivenOutOnce) {
  for (int stages = 1; stages <= 7; ++stages) {
    int next = 0;
    for (int stage = 0; stage < stages; ++stage) {
      const LayerRange layers = layers_of_stage(61, stage, stages);
      EXPECT_EQ(layers.first, next);
      EXPECT_GE(layers.end - layers.first, 61 / stages);
      next = layers.end;
    }
    EXPECT_EQ(next, 61);
    std::int64_t row = 0;
    for (int place = 0; place < stages; ++place) {
      const RowRange rows = rows_of_member(5, place, stages);
      EXPECT_EQ(rows.first, row);
      EXPECT_LE(rows.size(), (5 + stages - 1) / stages);
      row = rows.end;
    }
    EXPECT_EQ(row, 5);
  }
}

TEST(JobLayout, PartsOfAllRanksAreTheModel) {
  ModelShape shape = shape_with(5, 1);
  shape.num_experts = 6;
  shape.top_k = 2;
  const JobLayout job({1, 2, 1, 1}, nodes_of(8, 4));
  std::vector<int> holders(static_cast<std::size_t>(shape.num_layers * shape.num_experts));
  for (int rank = 0; rank < 8; ++rank) {
    const Placement placement = even_placement(shape, job.exchange_of(rank));
    const compute::Part part = part_of(job, placement, shape, rank, compute::OutputCut::columns);
    for (int layer = 0; layer < shape.num_layers; ++layer) {
      for (const int expert : part.experts[static_cast<std::size_t>(layer)]) {
        EXPECT_TRUE(layer >= part.first_layer && layer < part.end_layer);
        ++holders[static_cast<std::size_t>(layer * shape.num_experts + expert)];
      }
    }
  }
  for (int i = 0; i < shape.num_layers * shape.num_experts; ++i) {
    EXPECT_EQ(holders[static_cast<std::size_t>(i)], shape.is_dense(i / shape.num_experts) ? 0 : 1);
  }
}

std::string error_of(const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(JobLayout, WhatDoesNotDivideIsRefusedWithWhatWould) {
  EXPECT_EQ(error_of([] {
              JobLayout({3, 1, 1, 1}, nodes_of(16, 8));
            }),
            "--replicas 3 does not divide 16 ranks; try 1, 2, 4, 8, 16");
  EXPECT_EQ(error_of([] {
              JobLayout({1, 2, 3, 1}, nodes_of(16, 8));
            }),
            "--tp 3 does not divide the 8 ranks of a stage; try 1, 2, 4, 8");
  ModelShape shape = shape_with(4, 1);
  shape.num_heads = 6;
  shape.hidden = 24;
  EXPECT_NE(error_of([&] {
              require_divides({1, 1, 4, 1}, shape);
            }).find("try 1, 2, 3, 6"),
            std::string::npos);
  EXPECT_NE(error_of([&] { require_divides({1, 5, 1, 1}, shape); }), "");
}

Division of_text(const std::string& text, int ranks) {
  RunOptions options;
  options.layout = text;
  return division_of(options, ranks);
}

TEST(JobLayout, ShortNamesSayTheWholeLayout) {
  EXPECT_EQ(of_text("ep16", 16), (Division{1, 1, 1, 1}));
  EXPECT_EQ(of_text("ep64-tp8", 128), (Division{2, 1, 8, 1}));
  EXPECT_EQ(of_text("tp8-pp2", 16), (Division{1, 2, 8, 8}));
  EXPECT_EQ(of_text("tp8-pp2", 32), (Division{2, 2, 8, 8}));
  EXPECT_EQ(of_text("ep8-tp8-pp2", 16), (Division{1, 2, 8, 1}));
  EXPECT_EQ(of_text("dp2-ep4-etp2", 16), (Division{2, 1, 1, 2}));
  for (const char* wrong :
       {"", "ep", "ep0", "ep-4", "xp4", "ep4-ep4", "ep16x", "ep4-", "tp99999999"}) {
    if (*wrong == '\0') continue;
    EXPECT_THROW(of_text(wrong, 16), UsageError) << wrong;
  }
  EXPECT_THROW(of_text("dp3-ep16", 32), UsageError);
  EXPECT_THROW(of_text("ep32", 16), UsageError);
}

}  // namespace
}  // namespace atl
