// Configurations of published families as descriptions: what each comes to, by values of their
// config.json, and what is refused. That results are right, tests/e2e/families_test.sh tries.

#include "app/model/families.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "app/model/import.hpp"
#include "app/model/import_places.hpp"
#include "app/model/quantised.hpp"
#include "compute/convert.hpp"
#include "compute/error.hpp"

namespace atl {
namespace {

using Json = nlohmann::json;

/// Small sizes that every family has, and what one adds to them.
Json config_with(const char* model_type, const char* more) {
  Json json = Json::parse(R"({"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 512,
    "num_experts_per_tok": 3, "intermediate_size": 96, "moe_intermediate_size": 32,
    "hidden_act": "silu", "rope_theta": 10000, "torch_dtype": "bfloat16", "eos_token_id": [2, 999]})");
  json["model_type"] = model_type;
  json.update(Json::parse(more));
  return json;
}

ModelConfig described(const Json& json) {
  const ModelConfig config = ModelConfig::from_json(config_from_hf(json.dump(), "bfloat16"));
  EXPECT_EQ(ModelConfig::from_json(config.to_json()).to_json(), config.to_json());
  EXPECT_EQ(config.stop_token_ids, std::vector<std::int32_t>{2});  // the model has no other
  return config;
}

std::string refusal(const Json& json) {
  try {
    config_from_hf(json.dump(), "bfloat16");
  } catch (const Error& error) {
    return error.what();
  }
  ADD_FAILURE() << "accepted: " << json.dump();
  return {};
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

const char* const glm = R"({"n_routed_experts": 8, "n_shared_experts": 1, "head_dim": 16,
  "attention_bias": true, "use_qk_norm": true, "first_k_dense_replace": 1, "n_group": 1,
  "topk_group": 1, "routed_scaling_factor": 2.5, "partial_rotary_factor": 0.5})";

TEST(Families, GlmHasBiasesPartialRopeAndASharedExpert) {
  const ModelShape s = described(config_with("glm4_moe", glm)).shape;
  EXPECT_EQ(s.rope(0), [] {
    Rope rope = plain_rope(8, 10000);
    for (double& frequency : rope.frequencies) frequency = static_cast<float>(frequency);
    return rope;
  }());
  EXPECT_TRUE(s.qkv_bias);
  EXPECT_FALSE(s.output_bias);
  EXPECT_EQ(s.qk_norm, QkNorm::per_head);
  EXPECT_EQ(s.layer_is_dense, (std::vector<bool>{true, false, false, false}));
  EXPECT_EQ(s.router.score, RouterScore::sigmoid);
  EXPECT_TRUE(s.router.selection_bias);
  EXPECT_EQ(s.router.scale, 2.5F);
  EXPECT_TRUE(s.norm_topk_prob);
  EXPECT_EQ(s.shared_intermediate, 32);
  EXPECT_EQ(s.rms_eps, 1e-5F);  // the family's default
}

const char* const deepseek = R"({"n_routed_experts": 8, "n_shared_experts": 1, "kv_lora_rank": 32,
  "num_key_value_heads": 4, "q_lora_rank": 24, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8,
  "v_head_dim": 12, "first_k_dense_replace": 1, "n_group": 4, "topk_group": 2, "head_dim": 8,
  "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
  "rope_scaling": {"type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0,
                   "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096}})";

TEST(Families, DeepSeekHasLatentsGroupsAndYarn) {
  const ModelShape s = described(config_with("deepseek_v3", deepseek)).shape;
  EXPECT_EQ(s.latent, (LatentAttention{24, 32, 8, 1e-6F}));
  EXPECT_EQ(s.head_dim, 24);  // the key of this name says something else
  EXPECT_EQ(s.values_dim(), 12);
  EXPECT_EQ(s.router.groups, 4);
  EXPECT_EQ(s.router.top_groups, 2);
  EXPECT_EQ(s.router.group_score, GroupScore::two_best);
  EXPECT_EQ(s.rope(0).factor, 1);
  const double mscale = 0.1 * std::log(40.0) + 1;
  EXPECT_NEAR(s.logit_scale(), mscale * mscale / std::sqrt(24.0), 1e-6);
  // The fastest pair turns as it did, the slowest 40 times slower.
  EXPECT_NEAR(s.rope(0).frequencies.front(), 1, 1e-6);
  EXPECT_NEAR(s.rope(0).frequencies.back(), std::pow(10000.0, -6.0 / 8) / 40, 1e-6);
}

TEST(Families, TextPartsAndNewerSpellingsComeToTheSame) {
  const Json plain = config_with("deepseek_v3", deepseek);
  const std::string wanted = described(plain).to_json();
  Json newer = plain;
  newer["rope_parameters"] = newer["rope_scaling"];
  newer["rope_parameters"]["rope_theta"] = 10000;
  newer["dtype"] = newer["torch_dtype"];
  for (const char* key : {"rope_scaling", "rope_theta", "torch_dtype"}) newer.erase(key);
  EXPECT_EQ(described(newer).to_json(), wanted);
  Json named = plain;
  named.erase("model_type");
  named["architectures"] = {"DeepseekV3ForCausalLM"};
  EXPECT_EQ(described(named).to_json(), wanted);
  Json inner = plain;
  inner["model_type"] = "kimi_k2";
  EXPECT_EQ(described(Json{{"model_type", "kimi_k25"}, {"text_config", inner}}).to_json(), wanted);
}

TEST(Families, GptOssAlternatesWindowsAndHasSinks) {
  const ModelShape s = described(config_with("gpt_oss", R"({"num_local_experts": 8, "head_dim": 16,
    "sliding_window": 24, "rope_scaling": {"rope_type": "yarn", "factor": 32, "beta_fast": 32,
    "beta_slow": 1, "original_max_position_embeddings": 4096, "truncate": false}})"))
                           .shape;
  EXPECT_EQ(s.attention(0), (AttentionKind{2, 24, true, 0}));
  EXPECT_EQ(s.attention(1), (AttentionKind{2, 0, true, 0}));
  EXPECT_NEAR(s.rope(0).factor, 1.34657, 1e-5);
  EXPECT_EQ(s.activation, Activation::swiglu_clamped);
  EXPECT_TRUE(s.qkv_bias && s.output_bias && s.expert_bias && s.router.logit_bias);
  EXPECT_EQ(s.router.score, RouterScore::softmax_of_chosen);
  EXPECT_EQ(s.moe_intermediate, 96);
}

TEST(Families, MimoHasOtherHeadsAndRopesWhereItHasWindows) {
  const ModelShape s = described(config_with("mimo_v2_flash", R"({"n_routed_experts": 8,
    "head_dim": 24, "v_head_dim": 16, "sliding_window": 16, "sliding_window_size": 16,
    "hybrid_layer_pattern": [0, 1, 1, 0], "swa_num_key_value_heads": 4, "swa_rope_theta": 100,
    "layernorm_epsilon": 1e-4, "routed_scaling_factor": null})"))
                           .shape;
  EXPECT_EQ(s.attention(0), (AttentionKind{2, 0, false, 0}));
  EXPECT_EQ(s.attention(1), (AttentionKind{4, 17, true, 1}));
  EXPECT_EQ(s.attention(3), s.attention(0));
  EXPECT_EQ(s.rope(0).dims, 8);
  EXPECT_NEAR(s.rope(1).frequencies[1], std::pow(100, -2.0 / 8), 1e-6);
  EXPECT_EQ(s.rms_eps, 1e-4F);
  EXPECT_EQ(s.value_scale, 0.707F);
  EXPECT_EQ(s.router.scale, 1);
}

TEST(Families, GranitesMultipliersAreFolded) {
  const ModelShape s = described(config_with("granitemoe", R"({"num_local_experts": 8,
    "residual_multiplier": 0.5, "embedding_multiplier": 12, "attention_multiplier": 0.0625,
    "logits_scaling": 6, "rms_norm_eps": 1e-6})"))
                           .shape;
  EXPECT_EQ(s.embedding_scale, 24);
  EXPECT_NEAR(s.rms_eps, 4e-6, 1e-12);
  EXPECT_EQ(s.logit_scale(), 0.0625F);
}

TEST(Families, AnIndexLimitsTheContext) {
  Json json = config_with("deepseek_v32", deepseek);
  json["index_topk"] = 64;
  const ModelShape s = described(json).shape;
  EXPECT_EQ(s.index_top_k, 64);
  EXPECT_EQ(s.max_positions, 64);
}

TEST(Families, WhatIsNotSupportedIsNamed) {
  const auto refused = [](const char* type, const char* base, const char* key, const Json& value) {
    Json json = config_with(type, base);
    json[key] = value;
    return refusal(json);
  };
  EXPECT_TRUE(contains(refused("glm4_moe", glm, "hidden_act", "relu"), "hidden_act"));
  EXPECT_TRUE(contains(refused("glm4_moe", glm, "scoring_func", "tanh"), "scoring_func"));
  EXPECT_TRUE(contains(refused("glm4_moe", glm, "n_group", 3), "3 groups of 8 experts"));
  EXPECT_TRUE(
      contains(refused("glm4_moe", glm, "rope_scaling", {{"type", "longrope"}}), "longrope"));
  EXPECT_TRUE(contains(refused("glm4_moe", glm, "final_logit_softcapping", 30), "softcapping"));
  EXPECT_TRUE(
      contains(refused("deepseek_v3", deepseek, "num_key_value_heads", 2), "num_key_value"));
  EXPECT_TRUE(
      contains(refused("ernie4_5_moe", R"({"moe_num_experts": 8})", "use_bias", true), "use_bias"));
  EXPECT_TRUE(contains(refused("mimo_v2_flash", R"({"n_routed_experts": 8, "head_dim": 24})",
                               "swa_num_attention_heads", 8),
                       "swa_num_attention_heads"));
  EXPECT_TRUE(contains(refused("hunyuan_v1_moe", R"({"num_experts": 8})", "moe_topk", {1, 2, 2, 2}),
                       "moe_topk"));
}

TEST(Families, KeysThatNobodyKnowsAreNamed) {
  Json json = config_with("glm4_moe", glm);
  json["a_new_key"] = 3;
  std::string heard;
  describe_family(*family_of(json), json, "bfloat16",
                  [&](const std::string& line) { heard = line; });
  EXPECT_TRUE(contains(heard, "a_new_key")) << heard;
  EXPECT_FALSE(contains(heard, "hidden_size"));
}

TEST(Quantised, OnlyWhatIsUnderstoodIsTaken) {
  const auto refused = [](const char* text) {
    Json json{{"quantization_config", Json::parse(text)}};
    try {
      take_quantisation(json);
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_TRUE(contains(refused(R"({"quant_method": "gptq"})"), "gptq"));
  EXPECT_TRUE(contains(refused(R"({"quant_method": "fp8"})"), "weight_block_size"));
  EXPECT_TRUE(
      contains(refused(R"({"quant_method": "compressed-tensors", "format": "float-quantized"})"),
               "pack-quantized"));
  EXPECT_TRUE(contains(
      refused(R"({"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups":
                {"group_0": {"weights": {"num_bits": 8, "type": "int"}}}})"),
      "group_0"));
  EXPECT_EQ(refused(R"({"quant_method": "fp8", "weight_block_size": [128, 128]})"), "");
}

TEST(Picking, TakesRowsAndColumns) {
  const std::vector<float> stored = {1, 2, 3, 4, 5, 6};  // [2, 3] or [3, 2]
  const auto bytes = std::as_bytes(std::span(stored));
  std::vector<std::byte> buffer;
  const auto floats = [](std::span<const std::byte> from) {
    std::vector<float> values(from.size() / sizeof(float));
    compute::to_float(from.data(), DType::float32, values);
    return values;
  };
  EXPECT_EQ(floats(Picking{3, {1, 0}}.apply(bytes, DType::float32, buffer)),
            (std::vector<float>{4, 5, 6, 1, 2, 3}));
  EXPECT_EQ(floats(Picking{3, {2, 0}, true}.apply(bytes, DType::float32, buffer)),
            (std::vector<float>{3, 6, 1, 4}));
  EXPECT_EQ(floats(Picking{2, {1}, false, 0.5F}.apply(bytes, DType::float32, buffer)),
            (std::vector<float>{1.5F, 2}));
  EXPECT_EQ(Picking{}.apply(bytes, DType::float32, buffer).data(), bytes.data());
}

}  // namespace
}  // namespace atl
