// What a model file has of each tensor: names and shapes as they have always been.
#include "app/model/tensors.hpp"

#include <gtest/gtest.h>

#include <ostream>
#include <string>
#include <vector>

#include "tests/tiny_model.hpp"

namespace atl {
namespace {

struct OnFile {
  std::string path;
  std::vector<std::int64_t> shape;
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

/// hidden 48, 4 heads of 16 that share 2 key/value heads, 5 experts; one dense layer, one MoE.
ModelConfig two_layers() {
  ModelConfig config;
  config.shape = testing::tiny_shape();
  config.shape.num_layers = 2;
  config.shape.layer_is_dense = {true, false};
  return config;
}

/// Attention of a layer, with weights of q's and k's norms of these sizes; 0: it has none.
void add_attention(std::vector<OnFile>& datasets, const std::string& layer, int q_norm,
                   int k_norm) {
  datasets.push_back({layer + "input_layernorm/weight", {48}});
  datasets.push_back({layer + "self_attn/q_proj/weight", {64, 48}});
  datasets.push_back({layer + "self_attn/k_proj/weight", {32, 48}});
  datasets.push_back({layer + "self_attn/v_proj/weight", {32, 48}});
  datasets.push_back({layer + "self_attn/o_proj/weight", {48, 64}});
  if (q_norm > 0) {
    datasets.push_back({layer + "self_attn/q_norm/weight", {q_norm}});
    datasets.push_back({layer + "self_attn/k_norm/weight", {k_norm}});
  }
  datasets.push_back({layer + "post_attention_layernorm/weight", {48}});
}

std::vector<OnFile> swiglu_model(int q_norm, int k_norm) {
  std::vector<OnFile> datasets = {{"/model/embed_tokens/weight", {50, 48}}};
  add_attention(datasets, "/model/layers/0/", q_norm, k_norm);
  datasets.push_back({"/model/layers/0/mlp/gate_proj/weight", {80, 48}});
  datasets.push_back({"/model/layers/0/mlp/up_proj/weight", {80, 48}});
  datasets.push_back({"/model/layers/0/mlp/down_proj/weight", {48, 80}});
  add_attention(datasets, "/model/layers/1/", q_norm, k_norm);
  datasets.push_back({"/model/layers/1/mlp/gate/weight", {5, 48}});
  datasets.push_back({"/model/layers/1/mlp/experts/gate_proj/weight", {5, 40, 48}});
  datasets.push_back({"/model/layers/1/mlp/experts/up_proj/weight", {5, 40, 48}});
  datasets.push_back({"/model/layers/1/mlp/experts/down_proj/weight", {5, 48, 40}});
  datasets.push_back({"/model/norm/weight", {48}});
  datasets.push_back({"/lm_head/weight", {50, 48}});
  return datasets;
}

TEST(Tensors, AreWhatModelFilesHave) {
  ModelConfig config = two_layers();
  EXPECT_EQ(on_file(config), swiglu_model(0, 0));
  config.shape.qk_norm = QkNorm::per_head;
  EXPECT_EQ(on_file(config), swiglu_model(16, 16));
  config.shape.qk_norm = QkNorm::whole_row;
  EXPECT_EQ(on_file(config), swiglu_model(64, 32));
}

TEST(Tensors, WithoutAGateAndWithATiedHeadAreFewer) {
  ModelConfig config = two_layers();
  config.shape.activation = Activation::gelu_tanh;
  config.tie_word_embeddings = true;
  std::vector<OnFile> expected = swiglu_model(0, 0);
  expected.pop_back();
  std::erase_if(expected, [](const OnFile& dataset) {
    return dataset.path.find("gate_proj") != std::string::npos;
  });
  EXPECT_EQ(on_file(config), expected);
}

TEST(Tensors, OfExpertsAreReadBySlab) {
  for (const TensorInfo& tensor : tensors_of(two_layers())) {
    EXPECT_EQ(tensor.per_expert, tensor.path.find("/experts/") != std::string::npos) << tensor.path;
  }
}

}  // namespace
}  // namespace atl
