#include "app/model/architectures.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <vector>

#include "app/model/families.hpp"
#include "compute/error.hpp"
#include "io/json_shown.hpp"

namespace atl {
namespace {

using Json = nlohmann::json;
using io::shown;

/// Sizes that shape tensors have no defaults here: a folder that leaves them out is incomplete.
const std::vector<Architecture>& architectures() {
  static const std::vector<Architecture> list = {
      {"Qwen3MoeForCausalLM",
       "qwen3_moe",
       true,
       "moe_intermediate_size",
       std::nullopt,
       true,
       "mlp",
       "gate_proj",
       "up_proj",
       "down_proj",
       {{"num_key_value_heads", 4},
        {"num_experts_per_tok", 8},
        {"norm_topk_prob", false},
        {"hidden_act", "silu"},
        {"rms_norm_eps", 1e-6},
        {"rope_theta", 10000.0},
        {"max_position_embeddings", 32768},
        {"use_sliding_window", false},
        {"sliding_window", 4096},
        {"decoder_sparse_step", 1}}},
      {"MixtralForCausalLM",
       "mixtral",
       false,
       "intermediate_size",
       true,
       true,
       "block_sparse_moe",
       "w1",
       "w3",
       "w2",
       {{"num_key_value_heads", 8},
        {"num_experts_per_tok", 2},
        {"hidden_act", "silu"},
        {"rms_norm_eps", 1e-5},
        {"rope_theta", 1e6},
        {"max_position_embeddings", 131072},
        {"eos_token_id", 2}}},
      {"OlmoeForCausalLM",
       "olmoe",
       "whole_row",
       "intermediate_size",
       std::nullopt,
       false,
       "mlp",
       "gate_proj",
       "up_proj",
       "down_proj",
       {{"num_experts_per_tok", 8},
        {"norm_topk_prob", false},
        {"hidden_act", "silu"},
        {"rms_norm_eps", 1e-5},
        {"rope_theta", 10000.0},
        {"max_position_embeddings", 4096},
        {"eos_token_id", 50279}}},
  };
  return list;
}

bool has(const Json& json, const char* key) {
  return json.contains(key) && !json[key].is_null();
}

/// The names in `architectures`: a list, a single name, or nothing.
std::vector<std::string> class_names(const Json& hf) {
  std::vector<std::string> names;
  if (!has(hf, "architectures")) return names;
  const Json& value = hf["architectures"];
  for (const Json& name : value.is_array() ? value : Json::array({value})) {
    require(name.is_string(), "key \"architectures\" is {}, must be a list of names", shown(value));
    names.push_back(name.get<std::string>());
  }
  return names;
}

const Architecture* by_model_type(const Json& hf) {
  for (const Architecture& candidate : architectures()) {
    if (has(hf, "model_type") && hf["model_type"] == candidate.model_type) return &candidate;
  }
  return nullptr;
}

const Architecture* by_class_names(const std::vector<std::string>& names) {
  const Architecture* found = nullptr;
  for (const std::string& name : names) {
    for (const Architecture& candidate : architectures()) {
      if (name != candidate.name || found == &candidate) continue;
      require(found == nullptr,
              "key \"architectures\" names {} and {}, and there is no \"model_type\" to decide; "
              "keep one",
              found == nullptr ? "" : found->name, name);
      found = &candidate;
    }
  }
  return found;
}

/// A number with nothing after the point, as some programs write integers.
bool is_whole(const Json& value) {
  constexpr double exact = 9007199254740992.0;  // up to here every integer is a double
  return value.is_number_float() && std::trunc(value.get<double>()) == value.get<double>() &&
         std::abs(value.get<double>()) <= exact;
}

/// Writes 6.0 as 6, in keys and in lists of keys.
void normalise_numbers(Json& config) {
  for (auto& [key, value] : config.items()) {
    if (value.is_array()) {
      for (Json& entry : value) {
        if (is_whole(entry)) entry = static_cast<std::int64_t>(entry.get<double>());
      }
    } else if (is_whole(value)) {
      value = static_cast<std::int64_t>(value.get<double>());
    }
  }
}

/// `dtype` is the newer name of `torch_dtype` and counts where both are there.
void normalise_dtype(Json& config, const std::string& stored_dtype, const io::Warn& warn) {
  Json chosen;
  for (const char* key : {"dtype", "torch_dtype"}) {
    if (!has(config, key) || config[key] == "auto") continue;
    Json value = config[key];
    if (value.is_string()) {
      auto name = value.get<std::string>();
      if (name.starts_with("torch.")) name.erase(0, 6);
      // PyTorch's own other names.
      value = name == "half" ? "float16" : name == "float" ? "float32" : name;
    }
    if (chosen.is_null()) {
      chosen = value;
    } else if (chosen != value) {
      warn(fmt::format("took \"dtype\": {}, as transformers does; \"torch_dtype\" is {}",
                       shown(chosen), shown(value)));
    }
  }
  config.erase("torch_dtype");
  config["dtype"] = chosen.is_null() ? Json(stored_dtype) : chosen;
}

/// The rope_theta in `config[key]`, null where there is none. Throws Error when the positions are
/// scaled; a factor of 1 scales nothing.
Json theta_of(const Json& config, const char* key) {
  if (!has(config, key) || !config[key].is_object()) return {};
  const Json& rope = config[key];
  const bool unscaled = has(rope, "factor") && rope["factor"] == 1;
  // The kind of scaling says most, so it is named rather than one of its parameters.
  for (const char* type : {"rope_type", "type"}) {
    const Json kind = rope.value(type, Json());
    const bool harmless = kind.is_null() || kind == "default" ||
                          (unscaled && (kind == "linear" || kind == "dynamic"));
    require(harmless,
            "key \"{}\" has \"{}\": {}, which is not supported; only default (or a factor of 1 "
            "with linear or dynamic) is",
            key, type, shown(kind));
  }
  for (const auto& [name, value] : rope.items()) {
    static const std::set<std::string> without_effect = {"rope_theta", "rope_type", "type",
                                                         "original_max_position_embeddings"};
    const bool harmless =
        without_effect.contains(name) || value.is_null() ||
        ((name == "partial_rotary_factor" || name == "factor" || name == "attention_factor") &&
         value == 1);
    require(harmless, "key \"{}\" has \"{}\": {}, which is not supported; only rope_theta is", key,
            name, shown(value));
  }
  return rope.value("rope_theta", Json());
}

/// Newer folders keep rope_theta in `rope_parameters`, which the older `rope_scaling` replaces and
/// which replaces the key of its own.
void normalise_rope(Json& config, const io::Warn& warn) {
  const auto is_given = [&](const char* key) {
    return has(config, key) && config[key].is_object() && !config[key].empty();
  };
  const Json scaling = theta_of(config, "rope_scaling");
  const Json parameters = theta_of(config, "rope_parameters");
  const bool by_scaling = is_given("rope_scaling");
  const Json top = config.value("rope_theta", Json());
  const Json nested = by_scaling ? scaling : parameters;
  const Json chosen = nested.is_null() ? top : nested;
  require(!by_scaling || parameters.is_null() || parameters == chosen,
          "keys \"rope_scaling\" and \"rope_parameters\" are both given and disagree about "
          "rope_theta ({} and {}); keep one of them",
          chosen.is_null() ? "none" : shown(chosen), shown(parameters));
  if (!top.is_null() && top != chosen) {
    warn(
        fmt::format("took \"rope_theta\": {} of \"{}\", as transformers does; the key of its own "
                    "says {}",
                    shown(chosen), by_scaling ? "rope_scaling" : "rope_parameters", shown(top)));
  }
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    if (has(config, key) && config[key].is_object()) config.erase(key);
  }
  if (!chosen.is_null()) config["rope_theta"] = chosen;
}

/// The layers that have a dense MLP by `mlp_only_layers` and `decoder_sparse_step`.
void normalise_dense_layers(Json& config, const io::Warn& warn) {
  const Json step = config.value("decoder_sparse_step", Json(1));
  const Json layers = config.value("num_hidden_layers", Json(0));
  config.erase("decoder_sparse_step");
  require(step.is_null() || (step.is_number_unsigned() && step.get<std::uint64_t>() > 0) ||
              (step.is_number_integer() && step.get<std::int64_t>() > 0),
          "key \"decoder_sparse_step\" is {}, must be an integer from 1", shown(step));
  if (!layers.is_number_integer() || layers < 0 || layers > 4096) return;  // refused later
  const auto num_layers = layers.get<std::int64_t>();
  const std::int64_t every = step.is_null() ? 1 : step.get<std::int64_t>();
  std::set<std::int64_t> dense;
  for (std::int64_t layer = 0; layer < num_layers; ++layer) {
    if ((layer + 1) % every != 0) dense.insert(layer);
  }
  if (has(config, "mlp_only_layers")) {
    const Json& listed = config["mlp_only_layers"];
    if (!listed.is_array()) return;  // refused later
    for (const Json& layer : listed) {
      if (!layer.is_number_integer()) return;  // refused later
      if (layer >= 0 && layer < num_layers) {
        dense.insert(layer.get<std::int64_t>());
      } else {
        warn(
            fmt::format("left out layer {} of \"mlp_only_layers\", as transformers does: there "
                        "are {} layers",
                        shown(layer), num_layers));
      }
    }
  }
  config["mlp_only_layers"] = dense;
}

/// Drops stop ids that the model cannot produce: the defaults of `transformers` belong to large
/// vocabularies and stay in the configurations of small ones.
void normalise_stop_ids(Json& config) {
  if (!has(config, "eos_token_id") || !has(config, "vocab_size")) return;
  const Json& ids = config["eos_token_id"];
  Json kept = Json::array();
  for (const Json& id : ids.is_array() ? ids : Json::array({ids})) {
    const bool possible = !id.is_number_integer() || (id >= 0 && id < config["vocab_size"]);
    if (possible) kept.push_back(id);
  }
  config["eos_token_id"] = kept;
}

}  // namespace

const Architecture& architecture_of(const Json& hf, const io::Warn& warn) {
  const std::vector<std::string> names = class_names(hf);
  const Architecture* typed = by_model_type(hf);
  if (typed != nullptr) {
    const bool agree =
        names.empty() || std::find(names.begin(), names.end(), typed->name) != names.end();
    if (!agree) {
      warn(
          fmt::format("read as a {}, as transformers does: \"model_type\" is {}, although "
                      "\"architectures\" has {}",
                      typed->name, typed->model_type, fmt::join(names, ", ")));
    }
    return *typed;
  }
  const Architecture* named = by_class_names(names);
  if (named != nullptr) {
    if (has(hf, "model_type")) {
      warn(fmt::format("read as a {} by \"architectures\", although \"model_type\" is {}",
                       named->name, shown(hf["model_type"])));
    }
    return *named;
  }
  std::vector<std::string> supported;
  for (const Architecture& candidate : architectures()) supported.emplace_back(candidate.name);
  for (const Family& family : families()) {
    if (supported.back() != family.name) supported.emplace_back(family.name);
  }
  if (names.empty()) {
    fail(
        "keys \"architectures\" and \"model_type\" ({}) name no supported architecture; supported "
        "are {}",
        has(hf, "model_type") ? shown(hf["model_type"]) : "none", fmt::join(supported, ", "));
  }
  fail("architecture {} is not supported; supported are {}", fmt::join(names, ", "),
       fmt::join(supported, ", "));
}

Json convert_config(Json config, const Architecture& architecture, const std::string& stored_dtype,
                    const io::Warn& warn) {
  normalise_numbers(config);
  normalise_dtype(config, stored_dtype, warn);
  normalise_rope(config, warn);
  // Where the architecture has no such key, a window counts whatever it says.
  if (!architecture.defaults.contains("use_sliding_window")) config.erase("use_sliding_window");
  for (const auto& [key, value] : architecture.defaults.items()) {
    if (!config.contains(key) || (config[key].is_null() && key != "sliding_window" &&
                                  key != "eos_token_id" && key != "num_key_value_heads")) {
      config[key] = value;
    }
  }
  normalise_stop_ids(config);
  config["qk_norm"] = architecture.qk_norm;
  if (std::string(architecture.expert_size_key) != "moe_intermediate_size") {
    require(has(config, architecture.expert_size_key),
            "the configuration has no key \"{}\"; add it", architecture.expert_size_key);
    config["moe_intermediate_size"] = config[architecture.expert_size_key];
    config.erase(architecture.expert_size_key);
    config.erase("mlp_only_layers");  // these architectures have no dense layers
    config.erase("decoder_sparse_step");
  }
  normalise_dense_layers(config, warn);
  if (architecture.norm_topk_prob) config["norm_topk_prob"] = *architecture.norm_topk_prob;
  if (!architecture.can_slide) config.erase("sliding_window");
  config.erase("first_k_dense_replace");
  if (config["hidden_act"] == "swish") config["hidden_act"] = "silu";
  require(config["hidden_act"] == "silu", "key \"hidden_act\" is {}; of {} only silu is supported",
          shown(config["hidden_act"]), architecture.name);
  return config;
}

}  // namespace atl
