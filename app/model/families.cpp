#include "app/model/families.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "app/model/description.hpp"
#include "app/model/family_parts.hpp"
#include "compute/error.hpp"
#include "io/json_shown.hpp"

namespace atl {
namespace {

using Json = nlohmann::json;
using io::shown;

FamilyNames names_with(const std::function<void(FamilyNames&)>& change) {
  FamilyNames names;
  change(names);
  return names;
}

FamilyNames granite_names() {
  return names_with([](FamilyNames& n) {
    n.router = {"block_sparse_moe.router.layer.weight", "block_sparse_moe.router.weight"};
    n.fused_gate_up = {"block_sparse_moe.input_linear.weight",
                       "block_sparse_moe.experts.gate_up_proj"};
    n.fused_down = {"block_sparse_moe.output_linear.weight", "block_sparse_moe.experts.down_proj"};
    n.shared_gate_up = "shared_mlp.input_linear.weight";
    n.shared_down = "shared_mlp.output_linear.weight";
  });
}

}  // namespace

const std::vector<Family>& families() {
  static const FamilyNames indexer =
      names_with([](FamilyNames& n) { n.left_out = ".self_attn.indexer."; });
  static const std::vector<Family> list = {
      {"Glm4MoeForCausalLM", "glm4_moe", family::glm4_moe, {}},
      {"SolarOpenForCausalLM", "solar_open", family::solar_open, {}},
      {"MiniMaxM2ForCausalLM", "minimax_m2", family::minimax_m2, names_with([](FamilyNames& n) {
         n.experts = {"block_sparse_moe.experts", "mlp.experts"};
         n.gate = "w1";
         n.up = "w3";
         n.down = "w2";
         n.router = {"block_sparse_moe.gate.weight", "mlp.gate.weight"};
         n.selection_bias = {"block_sparse_moe.e_score_correction_bias",
                             "mlp.e_score_correction_bias"};
       })},
      {"HYV3ForCausalLM", "hy_v3", family::hy_v3, names_with([](FamilyNames& n) {
         n.router = {"mlp.router.gate.weight", "mlp.gate.weight"};
         n.selection_bias = {"mlp.expert_bias", "mlp.e_score_correction_bias"};
         n.shared = {"mlp.shared_mlp", "mlp.shared_experts"};
       })},
      {"Qwen2MoeForCausalLM", "qwen2_moe", family::qwen2_moe,
       names_with([](FamilyNames& n) { n.shared = {"mlp.shared_expert"}; })},
      {"Ernie4_5_MoeForCausalLM", "ernie4_5_moe", family::ernie4_5_moe,
       names_with([](FamilyNames& n) {
         n.selection_bias = {"mlp.moe_statics.e_score_correction_bias",
                             "mlp.gate.moe_statics.e_score_correction_bias"};
       })},
      {"HunYuanMoEV1ForCausalLM", "hunyuan_v1_moe", family::hunyuan_v1_moe,
       names_with([](FamilyNames& n) {
         n.router = {"mlp.gate.wg.weight"};
         n.shared = {"mlp.shared_mlp"};
         n.q_norm = "self_attn.query_layernorm";
         n.k_norm = "self_attn.key_layernorm";
       })},
      {"Dots1ForCausalLM", "dots1", family::dots1, {}},
      {"GraniteMoeForCausalLM", "granitemoe", family::granite_moe, granite_names()},
      {"GraniteMoeSharedForCausalLM", "granitemoeshared", family::granite_moe, granite_names()},
      {"GptOssForCausalLM", "gpt_oss", family::gpt_oss, names_with([](FamilyNames& n) {
         n.router = {"mlp.router.weight"};
         n.experts_by_columns = true;
       })},
      {"MiMoV2FlashForCausalLM", "mimo_v2_flash", family::mimo_v2_flash,
       names_with([](FamilyNames& n) {
         n.sinks = {"self_attn.attention_sink_bias", "self_attn.sinks"};
       })},
      {"DeepseekV2ForCausalLM", "deepseek_v2", family::deepseek_v2, {}},
      {"DeepseekV3ForCausalLM", "deepseek_v3", family::deepseek_v3, {}},
      {"DeepseekV3ForCausalLM", "kimi_k2", family::deepseek_v3, {}},
      {"KimiK25ForConditionalGeneration", "kimi_k25", family::deepseek_v3, {}},
      {"Glm4MoeLiteForCausalLM", "glm4_moe_lite", family::glm4_moe_lite, {}},
      {"Mistral4ForCausalLM", "mistral4", family::mistral4, {}},
      {"DeepseekV32ForCausalLM", "deepseek_v32", family::deepseek_v32, indexer},
      {"GlmMoeDsaForCausalLM", "glm_moe_dsa", family::glm_moe_dsa, indexer},
  };
  return list;
}

const Family* family_of(Json& hf) {
  const auto find = [](const Json& json) -> const Family* {
    const Json type = json.value("model_type", Json());
    const Json classes = json.value("architectures", Json());
    for (const Family& family : families()) {
      if (type == family.model_type) return &family;
    }
    for (const Family& family : families()) {
      const bool named = classes == family.name ||
                         (classes.is_array() && !classes.empty() && classes[0] == family.name);
      if (named && type.is_null()) return &family;
    }
    return nullptr;
  };
  if (hf.contains("text_config") && hf["text_config"].is_object()) {
    const Family* text = find(hf["text_config"]);
    if (text == nullptr) return nullptr;
    Json merged = hf["text_config"];
    for (const char* key : {"tie_word_embeddings", "dtype", "torch_dtype", "quantization_config"}) {
      if (!merged.contains(key) && hf.contains(key)) merged[key] = hf[key];
    }
    // Also where generation_config.json has put it.
    if (hf.contains("eos_token_id")) merged["eos_token_id"] = hf["eos_token_id"];
    hf = merged;
    return text;
  }
  return find(hf);
}

namespace {

DType dtype_of(const HfConfig& hf, const std::string& stored) {
  const char* key = hf.has("dtype") ? "dtype" : "torch_dtype";
  std::string name = stored;
  if (hf.has(key)) {
    require(hf.at(key).is_string(), "key \"{}\" is {}, must be a string", key, shown(hf.at(key)));
    name = hf.at(key).get<std::string>();
  }
  if (name.starts_with("torch.")) name.erase(0, 6);
  if (name == "auto") name = stored;
  for (const DType type : {DType::bfloat16, DType::float16, DType::float32}) {
    if (name == name_of(type)) return type;
  }
  fail("key \"{}\" is \"{}\", must be bfloat16, float16 or float32", key, name);
}

/// Ids that the model cannot produce are dropped: defaults of large vocabularies stay in the
/// configurations of small models.
std::vector<std::int32_t> stop_ids(const HfConfig& hf, int vocab) {
  std::vector<std::int32_t> ids;
  const Json& value = hf.at("eos_token_id");
  if (value.is_null()) return ids;
  for (const Json& id : value.is_array() ? value : Json::array({value})) {
    require(id.is_number() && std::trunc(id.get<double>()) == id.get<double>(),
            "key \"eos_token_id\" is {}, must be an integer or a list of them", shown(value));
    const auto number = id.get<double>();
    if (number >= 0 && number < vocab) ids.push_back(static_cast<std::int32_t>(number));
  }
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

}  // namespace

FamilyModel describe_family(const Family& family, const Json& hf, const std::string& stored_dtype,
                            const io::Warn& warn) {
  const HfConfig config(hf);
  FamilyModel model = family.describe(config);
  model.config.tie_word_embeddings =
      config.flag("tie_word_embeddings", model.config.tie_word_embeddings);
  model.config.dtype = dtype_of(config, stored_dtype);
  model.config.stop_token_ids = stop_ids(config, model.config.shape.vocab);
  const std::vector<std::string> unknown = config.unknown();
  if (!unknown.empty()) {
    warn(fmt::format("took these keys of config.json to change no result of a {}: {}", family.name,
                     fmt::join(unknown, ", ")));
  }
  check_shape_of(model.config.shape);
  // Every bound of the description holds for what comes from a family.
  model.config = ModelConfig::from_json(model.config.to_json());
  return model;
}

}  // namespace atl
