#include "app/model/model_config.hpp"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "app/model/tensors.hpp"
#include "compute/error.hpp"
#include "compute/sampling.hpp"

namespace atl {
namespace {

using Json = nlohmann::json;

Json base() {
  return Json::parse(R"({
    "hidden_size": 64, "num_hidden_layers": 3, "first_k_dense_replace": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "intermediate_size": 96,
    "moe_intermediate_size": 48, "num_experts": 8, "num_experts_per_tok": 2,
    "norm_topk_prob": false, "hidden_act": "silu", "qk_norm": true, "rms_norm_eps": 1e-5,
    "rope_theta": 500000, "vocab_size": 256, "max_position_embeddings": 4096,
    "tie_word_embeddings": false, "torch_dtype": "float16", "eos_token_id": [7, 3]})");
}

ModelConfig parse(const Json& json) {
  return ModelConfig::from_json(json.dump());
}

/// The message with which `json` is refused; fails the test when it is accepted.
std::string refusal(const Json& json) {
  try {
    parse(json);
  } catch (const Error& error) {
    return error.what();
  }
  ADD_FAILURE() << "accepted: " << json.dump();
  return {};
}

std::string refusal_with(const char* key, const Json& value) {
  Json json = base();
  json[key] = value;
  return refusal(json);
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(ModelConfig, ReadsEveryKey) {
  const ModelConfig config = parse(base());
  const ModelShape& s = config.shape;
  EXPECT_EQ(s.hidden, 64);
  EXPECT_EQ(s.num_layers, 3);
  EXPECT_EQ(s.layer_is_dense, (std::vector<bool>{true, false, false}));
  EXPECT_EQ(s.num_heads, 4);
  EXPECT_EQ(s.num_kv_heads, 2);
  EXPECT_EQ(s.head_dim, 32);
  EXPECT_EQ(s.intermediate, 96);
  EXPECT_EQ(s.moe_intermediate, 48);
  EXPECT_EQ(s.num_experts, 8);
  EXPECT_EQ(s.top_k, 2);
  EXPECT_FALSE(s.norm_topk_prob);
  EXPECT_EQ(s.activation, Activation::swiglu);
  EXPECT_EQ(s.qk_norm, QkNorm::per_head);
  EXPECT_EQ(s.rms_eps, 1e-5F);
  EXPECT_EQ(s.rope_theta, 500000.0);
  EXPECT_EQ(s.vocab, 256);
  EXPECT_EQ(s.max_positions, 4096);
  EXPECT_EQ(config.dtype, DType::float16);
  EXPECT_EQ(config.stop_token_ids, (std::vector<std::int32_t>{3, 7}));
}

TEST(ModelConfig, AcceptsAliasesAndDefaults) {
  Json json = base();
  json.erase("num_experts");
  json["n_routed_experts"] = 8;
  json["num_local_experts"] = 8;
  json.erase("first_k_dense_replace");
  json["mlp_only_layers"] = {2, 0};
  json.erase("head_dim");
  json["num_key_value_heads"] = nullptr;
  json.erase("torch_dtype");
  json["dtype"] = "torch.bfloat16";
  json["eos_token_id"] = 5;
  json["qk_norm"] = "whole_row";
  json["rope_scaling"] = nullptr;
  json["attention_bias"] = false;
  json["sliding_window"] = 128;
  json["use_sliding_window"] = false;
  const ModelConfig config = parse(json);
  EXPECT_EQ(config.shape.num_experts, 8);
  EXPECT_EQ(config.shape.layer_is_dense, (std::vector<bool>{true, false, true}));
  EXPECT_EQ(config.shape.head_dim, 16);
  EXPECT_EQ(config.shape.num_kv_heads, 4);
  EXPECT_EQ(config.dtype, DType::bfloat16);
  EXPECT_EQ(config.stop_token_ids, (std::vector<std::int32_t>{5}));
  EXPECT_EQ(config.shape.qk_norm, QkNorm::whole_row);
}

/// All layers attend to a window that is switched on and narrower than the context, and that is all
/// that changes; what is read again is the same.
TEST(ModelConfig, AWindowIsOfAllLayers) {
  Json json = base();
  json["sliding_window"] = 4095;
  json["max_window_layers"] = 1;
  const ModelConfig config = parse(json);
  const ModelShape& s = config.shape;
  EXPECT_EQ(s.attentions, (std::vector<AttentionKind>{{2, 4095, false, 0}}));
  EXPECT_EQ(s.attention_of, (std::vector<std::uint8_t>{0, 0, 0}));
  EXPECT_EQ(s.rope(0), plain_rope(32, 500000));
  const ModelConfig again = ModelConfig::from_json(config.to_json());
  EXPECT_EQ(again.to_json(), config.to_json());
  EXPECT_EQ(again.shape.attentions, s.attentions);
  EXPECT_EQ(again.shape.rope(0), s.rope(0));
  for (const auto& [key, value] :
       {std::pair<const char*, Json>{"sliding_window", 4096}, {"use_sliding_window", false}}) {
    Json off = json;
    off[key] = value;
    EXPECT_EQ(parse(off).to_json(), parse(base()).to_json()) << key;
  }
}

TEST(ModelConfig, TakesNumbersAsOtherProgramsWriteThem) {
  Json json = base();
  for (auto& [key, value] : json.items()) {
    if (value.is_number_integer()) value = value.get<double>();
    if (value.is_boolean()) value = value.get<bool>() ? 1 : 0;
  }
  json["qk_norm"] = true;
  json["eos_token_id"] = {3.0, 7.0};
  json["attention_bias"] = 0;
  EXPECT_EQ(parse(json).to_json(), parse(base()).to_json());
}

TEST(ModelConfig, NullIsNotGiven) {
  Json json = base();
  for (const char* key : {"sliding_window", "use_sliding_window", "quantization_config",
                          "n_shared_experts", "dtype", "mlp_only_layers", "n_routed_experts"}) {
    json[key] = nullptr;
  }
  EXPECT_EQ(parse(json).to_json(), parse(base()).to_json());
}

TEST(ModelConfig, TheNewerNameOfTheTypeCounts) {
  Json json = base();
  json["dtype"] = "bfloat16";
  EXPECT_EQ(parse(json).dtype, DType::bfloat16);
}

TEST(ModelConfig, WritesOneCanonicalForm) {
  Json other = base();
  other.erase("first_k_dense_replace");
  other["mlp_only_layers"] = {0};
  other["eos_token_id"] = {3, 7, 3};
  const std::string text = parse(base()).to_json();
  EXPECT_EQ(text, parse(other).to_json());
  EXPECT_EQ(text, ModelConfig::from_json(text).to_json());
  EXPECT_TRUE(contains(text, "\"rms_norm_eps\":1e-05")) << text;
  for (const char* qk_norm : {"false", "true", "\"whole_row\""}) {
    other["qk_norm"] = Json::parse(qk_norm);
    const std::string form = parse(other).to_json();
    EXPECT_TRUE(contains(form, std::string("\"qk_norm\":") + qk_norm)) << form;
    EXPECT_EQ(form, ModelConfig::from_json(form).to_json());
  }
}

TEST(ModelConfig, NamesEveryMissingKey) {
  for (const char* key : {"hidden_size", "num_hidden_layers", "num_attention_heads",
                          "intermediate_size", "moe_intermediate_size", "num_experts",
                          "num_experts_per_tok", "norm_topk_prob", "hidden_act", "rms_norm_eps",
                          "rope_theta", "vocab_size", "max_position_embeddings", "torch_dtype"}) {
    Json json = base();
    json.erase(key);
    EXPECT_TRUE(contains(refusal(json), key)) << key;
  }
  Json no_dense = base();
  no_dense.erase("intermediate_size");
  no_dense["first_k_dense_replace"] = 0;
  EXPECT_EQ(parse(no_dense).shape.intermediate, 0);
}

TEST(ModelConfig, RefusesImpossibleSizes) {
  for (const char* key :
       {"hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "head_dim", "intermediate_size", "moe_intermediate_size", "num_experts",
        "num_experts_per_tok", "vocab_size", "max_position_embeddings"}) {
    for (const char* value : {"0", "-4", "2147483648", "18446744073709551615", "1e30", "2.5",
                              "\"64\"", "[64]", "true"}) {
      const std::string message = refusal_with(key, Json::parse(value));
      EXPECT_TRUE(contains(message, key)) << key << " " << value << ": " << message;
    }
  }
}

// Else a model could be written that only scoring, which never samples, would seem to allow.
TEST(ModelConfig, RefusesVocabulariesThatCannotBeSampledFrom) {
  Json json = base();
  json["vocab_size"] = compute::max_vocab;
  EXPECT_EQ(parse(json).shape.vocab, compute::max_vocab);
  EXPECT_TRUE(contains(refusal_with("vocab_size", compute::max_vocab + 1), "vocab_size"));
}

TEST(ModelConfig, RefusesProductsThatOverflow) {
  Json json = base();
  json["num_attention_heads"] = json["num_key_value_heads"] = 65536;
  json["head_dim"] = 4096 * 2;
  EXPECT_TRUE(contains(refusal(json), "head_dim"));
  json["num_experts"] = 65536;
  json["head_dim"] = 64;
  json["hidden_size"] = json["moe_intermediate_size"] = 1 << 24;
  EXPECT_TRUE(contains(refusal(json), "lower its sizes"));
}

TEST(ModelConfig, RefusesWhatItCannotCompute) {
  EXPECT_TRUE(contains(refusal_with("num_experts_per_tok", 9), "at most num_experts (8)"));
  EXPECT_TRUE(contains(refusal_with("num_key_value_heads", 3), "num_key_value_heads"));
  EXPECT_TRUE(contains(refusal_with("head_dim", 31), "head_dim"));
  EXPECT_TRUE(contains(refusal_with("hidden_act", "relu"), "relu"));
  EXPECT_TRUE(contains(refusal_with("torch_dtype", "int8"), "int8"));
  EXPECT_TRUE(contains(refusal_with("qk_norm", "rows"), "whole_row"));
  EXPECT_TRUE(contains(refusal_with("rope_scaling", {{"type", "yarn"}}), "yarn"));
  EXPECT_TRUE(contains(refusal_with("attention_bias", true), "attention_bias"));
  EXPECT_TRUE(contains(refusal_with("decoder_sparse_step", 2), "decoder_sparse_step"));
  EXPECT_TRUE(contains(refusal_with("sliding_window", 0), "sliding_window"));
  EXPECT_TRUE(contains(refusal_with("sliding_window", "all"), "sliding_window"));
  EXPECT_TRUE(contains(refusal_with("n_shared_experts", 1), "n_shared_experts"));
  EXPECT_TRUE(contains(refusal_with("eos_token_id", 256), "eos_token_id"));
  EXPECT_TRUE(contains(refusal_with("eos_token_id", {1, -1}), "eos_token_id"));
  EXPECT_TRUE(contains(refusal_with("first_k_dense_replace", 4), "first_k_dense_replace"));
  EXPECT_TRUE(contains(refusal_with("mlp_only_layers", {3}), "mlp_only_layers"));
  EXPECT_TRUE(contains(refusal_with("mlp_only_layers", {1}), "different dense layers"));
  EXPECT_TRUE(contains(refusal_with("num_local_experts", 4), "num_local_experts"));
  EXPECT_TRUE(contains(refusal_with("rms_norm_eps", -1e-6), "rms_norm_eps"));
  EXPECT_TRUE(contains(refusal_with("rope_theta", 0), "rope_theta"));
  EXPECT_TRUE(contains(refusal_with("tie_word_embeddings", 2), "tie_word_embeddings"));
  EXPECT_TRUE(contains(refusal_with("attention_bias", 1), "attention_bias"));
  EXPECT_THROW(ModelConfig::from_json("{"), Error);
  EXPECT_TRUE(contains(refusal_with("rope_theta", "Infinity"), "rope_theta"));
  EXPECT_THROW(ModelConfig::from_json("[]"), Error);
  EXPECT_THROW(ModelConfig::from_json(""), Error);
  EXPECT_THROW(ModelConfig::from_json("{\"hidden_act\": \"\xff\"}"), Error);
}

TEST(ModelConfig, ListsItsTensors) {
  const std::vector<TensorInfo> tensors = tensors_of(parse(base()));
  // embedding, norm, lm_head; 8 per layer for attention and norms; dense 3, MoE 4.
  EXPECT_EQ(tensors.size(), 3U + 3U * 8U + 3U + 2U * 4U);
  EXPECT_EQ(tensors.front().path, "/model/embed_tokens/weight");
  EXPECT_EQ(tensors.back().path, "/lm_head/weight");
  const auto find = [&](const std::string& path) {
    for (const TensorInfo& tensor : tensors) {
      if (tensor.path == path) return tensor;
    }
    ADD_FAILURE() << "no tensor " << path;
    return TensorInfo{};
  };
  EXPECT_EQ(find("/model/layers/0/mlp/gate_proj/weight").shape,
            (std::vector<std::int64_t>{96, 64}));
  const TensorInfo down = find("/model/layers/2/mlp/experts/down_proj/weight");
  EXPECT_EQ(down.shape, (std::vector<std::int64_t>{8, 64, 48}));
  EXPECT_TRUE(down.per_expert);
  EXPECT_EQ(find("/model/layers/1/self_attn/k_proj/weight").shape,
            (std::vector<std::int64_t>{64, 64}));
  EXPECT_EQ(find("/model/layers/1/self_attn/q_norm/weight").shape, (std::vector<std::int64_t>{32}));

  Json tied = base();
  tied["tie_word_embeddings"] = true;
  tied["hidden_act"] = "gelu_pytorch_tanh";
  tied["qk_norm"] = false;
  EXPECT_EQ(tensors_of(parse(tied)).size(), 2U + 3U * 6U + 2U + 2U * 3U);
}

TEST(ModelConfig, PresetsHoldTogether) {
  EXPECT_EQ(preset_names().size(), 7U);
  for (const std::string& name : preset_names()) {
    const ModelConfig config = preset(name);
    EXPECT_EQ(ModelConfig::from_json(config.to_json()).to_json(), config.to_json()) << name;
    EXPECT_EQ(config.shape.top_k, 2) << name;
  }
  // 2 matrices of 7168 x 2048 in two bytes: 58.7 MB per expert.
  const ModelShape big = preset("moe-61l").shape;
  EXPECT_EQ(2LL * big.hidden * big.moe_intermediate * 2, 58720256LL);
  EXPECT_EQ(preset("moe-4l-tiny").dtype, DType::float16);
  EXPECT_EQ(preset("moe-61l-tiny").shape.layer_is_dense, big.layer_is_dense);
  try {
    preset("moe-17l");
    FAIL();
  } catch (const UsageError& error) {
    EXPECT_TRUE(contains(error.what(), "bench-cpu"));
  }
}

TEST(ModelConfig, CountsFlops) {
  Json json = base();
  // attention 64*(128+64+64+128); dense 3*64*96; MoE 64*8 + 2*3*64*48; head 64*256.
  const double attention = 64.0 * 384;
  const double expected =
      2 * (3 * attention + 3.0 * 64 * 96 + 2 * (64.0 * 8 + 6.0 * 64 * 48) + 64.0 * 256);
  EXPECT_EQ(gemm_flops_per_token(parse(json).shape), expected);
}

}  // namespace
}  // namespace atl
