// The table of weights against what model files have always had, and parts against the whole.
#include "compute/weights.hpp"

#include <gtest/gtest.h>

#include <map>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "app/model/model_config.hpp"
#include "app/model/tensors.hpp"
#include "app/plan/placement.hpp"

namespace atl::compute {
namespace {

using Shape = std::vector<std::int64_t>;

/// Two layers, the first dense; every width is another number.
ModelConfig small_model(Activation activation, QkNorm norm) {
  ModelConfig config;
  ModelShape& s = config.shape;
  s.hidden = 24;
  s.num_layers = 2;
  s.num_heads = 5;
  s.num_kv_heads = 1;
  s.head_dim = 6;
  s.intermediate = 40;
  s.moe_intermediate = 16;
  s.num_experts = 3;
  s.top_k = 2;
  s.vocab = 100;
  s.activation = activation;
  s.qk_norm = norm;
  s.layer_is_dense = {true, false};
  return config;
}

struct OnFile {
  std::string path;
  Shape shape;
  bool operator==(const OnFile&) const = default;
};

std::ostream& operator<<(std::ostream& out, const OnFile& dataset) {
  out << dataset.path;
  for (const std::int64_t extent : dataset.shape) out << ' ' << extent;
  return out;
}

std::vector<OnFile> on_file(const ModelConfig& config) {
  std::vector<OnFile> datasets;
  for (const TensorInfo& tensor : tensors_of(config)) {
    datasets.push_back({tensor.path, tensor.shape});
  }
  return datasets;
}

TEST(WeightsOf, IsWhatModelFilesHave) {
  const std::string dense = "/model/layers/0/";
  const std::string moe = "/model/layers/1/";
  const std::vector<OnFile> expected = {
      {"/model/embed_tokens/weight", {100, 24}},
      {dense + "input_layernorm/weight", {24}},
      {dense + "self_attn/q_proj/weight", {30, 24}},
      {dense + "self_attn/k_proj/weight", {6, 24}},
      {dense + "self_attn/v_proj/weight", {6, 24}},
      {dense + "self_attn/o_proj/weight", {24, 30}},
      {dense + "self_attn/q_norm/weight", {6}},
      {dense + "self_attn/k_norm/weight", {6}},
      {dense + "post_attention_layernorm/weight", {24}},
      {dense + "mlp/gate_proj/weight", {40, 24}},
      {dense + "mlp/up_proj/weight", {40, 24}},
      {dense + "mlp/down_proj/weight", {24, 40}},
      {moe + "input_layernorm/weight", {24}},
      {moe + "self_attn/q_proj/weight", {30, 24}},
      {moe + "self_attn/k_proj/weight", {6, 24}},
      {moe + "self_attn/v_proj/weight", {6, 24}},
      {moe + "self_attn/o_proj/weight", {24, 30}},
      {moe + "self_attn/q_norm/weight", {6}},
      {moe + "self_attn/k_norm/weight", {6}},
      {moe + "post_attention_layernorm/weight", {24}},
      {moe + "mlp/gate/weight", {3, 24}},
      {moe + "mlp/experts/gate_proj/weight", {3, 16, 24}},
      {moe + "mlp/experts/up_proj/weight", {3, 16, 24}},
      {moe + "mlp/experts/down_proj/weight", {3, 24, 16}},
      {"/model/norm/weight", {24}},
      {"/lm_head/weight", {100, 24}},
  };
  ModelConfig config = small_model(Activation::swiglu, QkNorm::per_head);
  EXPECT_EQ(on_file(config), expected);
  for (const TensorInfo& tensor : tensors_of(config)) {
    EXPECT_EQ(tensor.per_expert, tensor.path.find("/experts/") != std::string::npos) << tensor.path;
  }

  config.shape.qk_norm = QkNorm::whole_row;
  std::vector<OnFile> others = expected;
  for (const std::size_t layer : {0, 11}) {
    others[layer + 6].shape = {30};
    others[layer + 7].shape = {6};
  }
  EXPECT_EQ(on_file(config), others);

  config = small_model(Activation::gelu_tanh, QkNorm::none);
  config.tie_word_embeddings = true;
  others.clear();
  for (const OnFile& dataset : expected) {
    const bool absent = dataset.path.find("gate_proj") != std::string::npos ||
                        dataset.path.find("_norm/") != std::string::npos ||
                        dataset.path == "/lm_head/weight";
    if (!absent) others.push_back(dataset);
  }
  EXPECT_EQ(on_file(config), others);
}

std::vector<std::pair<std::string, ModelShape>> shapes() {
  std::vector<std::pair<std::string, ModelShape>> all;
  for (const std::string& name : preset_names()) all.emplace_back(name, preset(name).shape);
  for (const QkNorm norm : {QkNorm::none, QkNorm::per_head, QkNorm::whole_row}) {
    all.emplace_back("swiglu", small_model(Activation::swiglu, norm).shape);
  }
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
    }
  }
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
      const Placement placement = contiguous_placement(shape.num_experts, num_ranks);
      std::vector<Part> parts;
      for (int rank = 0; rank < num_ranks; ++rank) {
        parts.push_back(placement.part_of(rank, shape));
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
  const ModelShape shape = small_model(Activation::swiglu, QkNorm::none).shape;
  const Placement placement = contiguous_placement(shape.num_experts, 2);
  const Part second = placement.part_of(1, shape);
  EXPECT_EQ(second.send_order, placement.send_order);
  for_each_weight(shape, second, [&](const WeightInfo& info, int expert, int local_expert) {
    EXPECT_EQ(expert, info.per_expert ? 2 : -1);
    EXPECT_EQ(local_expert, info.per_expert ? 0 : -1);
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
