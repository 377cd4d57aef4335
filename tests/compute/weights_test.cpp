// The table of weights, and ranks' parts against the whole.
#include "compute/weights.hpp"

#include <gtest/gtest.h>

#include <map>
#include <numeric>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "app/model/model_config.hpp"
#include "app/plan/placement.hpp"
#include "compute/error.hpp"
#include "compute/weight_cut.hpp"
#include "tests/tiny_model.hpp"

namespace atl::compute {
namespace {

/// Those of the presets and of every kind of model that backends support.
std::vector<testing::ModelKind> shapes() {
  std::vector<testing::ModelKind> all = testing::model_kinds();
  for (const std::string& name : preset_names()) all.push_back({name, preset(name).shape});
  return all;
}

TEST(WeightsOf, EveryRowHoldsTogether) {
  for (const auto& [name, shape] : shapes()) {
    std::set<std::pair<Weight, int>> seen;
    std::set<std::string> paths;
    for (const WeightInfo& info : weights_of(shape)) {
      EXPECT_TRUE(seen.emplace(info.id, info.layer).second) << name << name_of(info.id);
      EXPECT_EQ(info.use == Use::vector, info.cols == 1) << name << name_of(info.id);
      EXPECT_FALSE(info.per_expert && shape.is_dense(info.layer)) << name << name_of(info.id);
      std::int64_t rows = 0;
      for (const Dataset& dataset : info.datasets) {
        EXPECT_TRUE(paths.insert(dataset.path).second) << dataset.path;
        rows += dataset.rows;
      }
      EXPECT_EQ(rows, info.rows) << name << name_of(info.id);
    }
  }
}

/// What is cut by heads consists of whole heads, dataset by dataset, and an MLP's matrices are cut
/// along their one common width.
TEST(WeightsOf, CutsFallBetweenHeadsAndInsideMlps) {
  for (const auto& [name, shape] : shapes()) {
    for (const WeightInfo& info : weights_of(shape)) {
      const std::int64_t inner = info.per_expert ? shape.moe_intermediate : shape.intermediate;
      switch (info.cut) {
        case Cut::none:
          break;
        case Cut::heads_of_rows:
          for (const Dataset& dataset : info.datasets) {
            const bool keys_or_values = dataset.rows == shape.kv_width();
            EXPECT_TRUE(keys_or_values || dataset.rows == shape.q_width()) << dataset.path;
          }
          break;
        case Cut::heads_of_columns:
          EXPECT_EQ(info.cols, shape.q_width()) << name;
          break;
        case Cut::output_rows:
          EXPECT_EQ(info.rows, shape.hidden) << name;
          break;
        case Cut::inner_rows:
          EXPECT_EQ(info.rows, inner) << name << name_of(info.id);
          break;
        case Cut::inner_columns:
          EXPECT_EQ(info.cols, inner) << name << name_of(info.id);
          break;
      }
      const bool of_mlp =
          info.id == Weight::gate || info.id == Weight::up || info.id == Weight::down;
      EXPECT_EQ(info.cut == Cut::inner_rows || info.cut == Cut::inner_columns, of_mlp) << name;
      const bool of_rows_norm = shape.qk_norm == QkNorm::whole_row &&
                                (info.id == Weight::q_norm || info.id == Weight::k_norm);
      const bool of_heads = info.id == Weight::qkv || info.id == Weight::o || of_rows_norm;
      EXPECT_EQ(info.cut != Cut::none, of_mlp || of_heads) << name << name_of(info.id);
    }
  }
}

TEST(ShareAttention, GroupsOfQueryHeadsMayDifferInSize) {
  ModelShape shape = testing::tiny_shape();
  shape.num_heads = 12;
  shape.num_kv_heads = 4;
  using Groups = std::vector<HeadGroup>;
  const auto heads = [&](int members, int place) {
    return share_attention(shape, members, place, OutputCut::columns).heads;
  };
  EXPECT_EQ(heads(3, 0), (Groups{{0, 0, 3}, {1, 3, 1}}));
  EXPECT_EQ(heads(3, 1), (Groups{{1, 4, 2}, {2, 6, 2}}));
  EXPECT_EQ(heads(3, 2), (Groups{{2, 8, 1}, {3, 9, 3}}));
  EXPECT_EQ(heads(12, 7), (Groups{{2, 7, 1}}));
  EXPECT_TRUE(heads(1, 0).empty());
  EXPECT_EQ(share_attention(shape, 3, 0, OutputCut::rows).sums_per_member(shape), 6);
  EXPECT_EQ(share_attention(shape, 6, 0, OutputCut::rows).sums_per_member(shape), 4);
}

TEST(ShareAttention, RefusesWhatDoesNotDivide) {
  ModelShape shape = testing::tiny_shape();
  EXPECT_THROW(share_attention(shape, 3, 0, OutputCut::rows), Error);
  EXPECT_THROW(share_attention(shape, 2, 2, OutputCut::rows), Error);
  shape.hidden = 37;
  EXPECT_THROW(share_attention(shape, 2, 0, OutputCut::columns), Error);
  EXPECT_THROW(share_attention(shape, 2, 0, OutputCut::either), Error);
  EXPECT_EQ(share_attention(shape, 2, 1, OutputCut::rows).heads.size(), 1U);
}

/// Numbers of a tensor [rows, cols] whose element says where it is: row * cols + column.
std::vector<float> numbered(const WeightInfo& info) {
  std::vector<float> values(static_cast<std::size_t>(info.num_elements()));
  std::iota(values.begin(), values.end(), 0.0F);
  return values;
}

TEST(WeightCut, ARankHasItsHeadsRowsAndItsPartOfTheOutput) {
  ModelShape shape = testing::tiny_shape();
  shape.qk_norm = QkNorm::whole_row;
  const int d = shape.head_dim;  // 4 query heads, 2 KV heads; member 2 has query head 2, KV head 1
  for (const OutputCut output : {OutputCut::rows, OutputCut::columns, OutputCut::either,
                                 OutputCut::sum, OutputCut::sum_bf16}) {
    Part part = whole_model(shape);
    part.attention = share_attention(shape, 4, 2, output);
    for (const WeightInfo& info : weights_of(shape)) {
      const std::vector<float> values = numbered(info);
      AlignedBuffer buffer;
      const HostTensor own = own_tensor(
          shape, part, info, {values.data(), DType::float32, info.rows, info.cols}, buffer);
      EXPECT_EQ(own.rows, own_weight(shape, part, info).rows);
      EXPECT_EQ(own.cols, own_weight(shape, part, info).cols);
      std::vector<std::int64_t> rows(static_cast<std::size_t>(info.rows));
      std::iota(rows.begin(), rows.end(), 0);
      std::int64_t first_col = 0;
      const auto keep = [&](std::initializer_list<int> heads) {
        rows.clear();
        for (const int head : heads) {
          for (int i = 0; i < d; ++i) rows.push_back(head * d + i);
        }
      };
      if (info.id == Weight::qkv) keep({2, 4 + 1, 6 + 1});
      if (info.id == Weight::q_norm) keep({2});
      if (info.id == Weight::k_norm) keep({1});
      if (info.id == Weight::o && output == OutputCut::columns) {
        rows.resize(12);
        std::iota(rows.begin(), rows.end(), 24);
      }
      const bool some_columns = info.id == Weight::o && is_sum(output);
      if (some_columns) first_col = std::int64_t{2} * d;
      ASSERT_EQ(own.rows, static_cast<std::int64_t>(rows.size())) << name_of(info.id);
      ASSERT_EQ(own.cols, some_columns ? d : info.cols) << name_of(info.id);
      const auto* got = static_cast<const float*>(own.data);
      for (const std::int64_t row : rows) {
        for (std::int64_t c = 0; c < own.cols; ++c) {
          ASSERT_EQ(*got++, static_cast<float>(row * info.cols + first_col + c));
        }
      }
    }
  }
}

TEST(WeightCut, OfSharedExpertsARankHasInnerAndOutputColumns) {
  const ModelShape shape = testing::tiny_shape();
  Part part = whole_model(shape);
  part.expert_share = share_experts(shape, 4, 3);
  for (const WeightInfo& info : weights_of(shape)) {
    const WeightCut cut = cut_of(shape, part, info);
    EXPECT_EQ(cut.cols.count, info.cols);
    ASSERT_EQ(cut.rows.size(), 1U);
    const std::int64_t rows = info.per_expert ? info.rows / 4 : info.rows;
    EXPECT_EQ(cut.rows.front().first, info.per_expert ? 3 * rows : 0) << name_of(info.id);
    EXPECT_EQ(cut.rows.front().count, rows) << name_of(info.id);
  }
  EXPECT_THROW(share_experts(shape, 3, 0), Error);
}

using Held = std::map<std::tuple<Weight, int, int>, int>;

Held held_by(const ModelShape& shape, const std::vector<Part>& parts) {
  Held held;
  for (const Part& part : parts) {
    for_each_weight(shape, part, [&](const WeightInfo& info, int expert, int) {
      ++held[{info.id, info.layer, expert}];
    });
  }
  return held;
}

TEST(ForEachWeight, RanksTogetherHaveEachExpertOnceAndAllElseEach) {
  for (const auto& [name, shape] : shapes()) {
    const Held whole = held_by(shape, {whole_model(shape)});
    for (const int num_ranks : {1, 2, 3}) {
      const Layout layout = one_node(num_ranks);
      const Placement placement = even_placement(shape, layout);
      std::vector<Part> parts;
      for (int rank = 0; rank < num_ranks; ++rank) {
        parts.push_back(placement.part_of(rank, shape, layout));
      }
      const Held held = held_by(shape, parts);
      ASSERT_EQ(held.size(), whole.size()) << name;
      for (const auto& [key, times] : held) {
        ASSERT_TRUE(whole.contains(key)) << name;
        EXPECT_EQ(times, std::get<2>(key) < 0 ? num_ranks : 1) << name_of(std::get<0>(key));
      }
    }
  }
}

TEST(ForEachWeight, LocalNumbersFollowThePlacement) {
  const ModelShape shape = testing::tiny_shape();
  const Part second = even_placement(shape, one_node(2)).part_of(1, shape, one_node(2));
  for_each_weight(shape, second, [&](const WeightInfo& info, int expert, int local_expert) {
    EXPECT_EQ(expert, info.per_expert ? 3 + local_expert : -1) << name_of(info.id);
    EXPECT_EQ(local_expert >= 0, info.per_expert) << name_of(info.id);
  });
}

TEST(ForEachWeight, LayersDividedAmongRanksMakeTheModel) {
  const ModelShape shape = preset("moe-4l-tiny").shape;
  std::vector<Part> parts(3, whole_model(shape));
  parts[0].end_layer = parts[1].first_layer = 1;
  parts[1].end_layer = parts[2].first_layer = 3;
  const Held held = held_by(shape, parts);
  EXPECT_EQ(held, held_by(shape, {whole_model(shape)}));
  const Held middle = held_by(shape, {parts[1]});
  EXPECT_FALSE(middle.contains({Weight::embedding, -1, -1}));
  EXPECT_FALSE(middle.contains({Weight::lm_head, -1, -1}));
  EXPECT_TRUE(middle.contains({Weight::qkv, 2, -1}));
}

}  // namespace
}  // namespace atl::compute
