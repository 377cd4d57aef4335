#include "app/model/model_config.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "app/model/description.hpp"
#include "app/model/kept_config.hpp"
#include "app/model/tensors.hpp"
#include "compute/error.hpp"
#include "compute/sampling.hpp"
#include "io/json_shown.hpp"
#include "io/json_text.hpp"

namespace atl {
namespace {

using Json = nlohmann::json;
using io::shown;

// Bounds far above any model of today; they keep every width below in an int and every tensor's
// bytes in an int64.
constexpr std::int64_t max_width = 1 << 24;
constexpr std::int64_t max_layers = 4096;
constexpr std::int64_t max_experts = 65536;
constexpr std::int64_t max_heads = 65536;
constexpr std::int64_t max_head_dim = 4096;
constexpr std::int64_t max_context = 1 << 27;
constexpr std::int64_t max_fused_rows = 1 << 30;
constexpr std::int64_t max_elements = std::int64_t{1} << 44;

/// Typed look-ups that name key and value when they fail. A null counts as absent.
class Keys {
 public:
  explicit Keys(const Json& config) : config_(config) {}

  bool has(const char* key) const { return config_.contains(key) && !config_[key].is_null(); }

  const Json& at(const char* key) const {
    require(has(key), "the configuration has no key \"{}\"; add it", key);
    return config_[key];
  }

  std::int64_t integer(const char* key, std::int64_t low, std::int64_t high) const {
    return checked_integer(key, at(key), low, high);
  }

  int size(const char* key, std::int64_t high) const {
    return static_cast<int>(integer(key, 1, high));
  }

  double number(const char* key, double low, double high) const {
    const Json& value = at(key);
    const double number = value.is_number() ? value.get<double>() : std::nan("");
    require(number >= low && number <= high,
            "configuration key \"{}\" is {}, must be a number from {} to {}", key, shown(value),
            low, high);
    return number;
  }

  bool flag(const char* key, bool otherwise) const {
    if (!has(key)) return otherwise;
    const Json& value = config_[key];
    const bool number = value == 0 || value == 1;  // as other programs write them
    require(value.is_boolean() || number, "configuration key \"{}\" is {}, must be true or false",
            key, shown(value));
    return number ? value == 1 : value.get<bool>();
  }

  std::string text(const char* key) const {
    const Json& value = at(key);
    require(value.is_string(), "configuration key \"{}\" is {}, must be a string", key,
            shown(value));
    return value.get<std::string>();
  }

  static std::int64_t checked_integer(const char* key, const Json& value, std::int64_t low,
                                      std::int64_t high) {
    // Neither an unsigned number above int64 nor a fraction may turn into an allowed integer; 6.0,
    // as some programs write it, is 6.
    constexpr double exact = 9007199254740992.0;  // up to here a double has every integer
    const bool is_float = value.is_number_float();
    const double number = value.is_number() ? value.get<double>() : 0.0;
    const bool fits =
        is_float ? std::trunc(number) == number && std::abs(number) <= exact
                 : value.is_number_integer() &&
                       !(value.is_number_unsigned() &&
                         value.get<std::uint64_t>() > static_cast<std::uint64_t>(INT64_MAX));
    const std::int64_t integer = !fits      ? 0
                                 : is_float ? static_cast<std::int64_t>(number)
                                            : value.get<std::int64_t>();
    require(fits && integer >= low && integer <= high,
            "configuration key \"{}\" is {}, must be an integer from {} to {}", key, shown(value),
            low, high);
    return integer;
  }

 private:
  const Json& config_;
};

/// Keys of other architectures whose effect Atoll does not have, with their harmless values.
void refuse_unsupported(const Json& config) {
  static const std::vector<std::pair<const char*, Json>> harmless = {
      {"attention_bias", false},
      {"mlp_bias", false},
      {"qkv_bias", false},
      {"clip_qkv", nullptr},
      {"quantization_config", nullptr},
      {"kv_lora_rank", nullptr},
      {"q_lora_rank", nullptr},
      {"n_shared_experts", 0},
      {"shared_expert_intermediate_size", 0},
      {"scoring_func", "softmax"},
      {"n_group", 1},
      {"topk_group", 1},
      {"routed_scaling_factor", 1},
      {"partial_rotary_factor", 1},
      {"decoder_sparse_step", 1},
      {"moe_layer_freq", 1},
      {"rope_scaling", nullptr},
      {"rope_parameters", nullptr},
      {"attn_logit_softcapping", nullptr},
      {"final_logit_softcapping", nullptr},
  };
  for (const auto& [key, value] : harmless) {
    if (!config.contains(key) || config[key].is_null() || config[key] == value) continue;
    if (value.is_boolean() && config[key] == (value.get<bool>() ? 1 : 0)) continue;
    fail("configuration key \"{}\" is {}, which is not supported; only {} or no such key works",
         key, shown(config[key]), value.is_null() ? "null" : shown(value));
  }
}

/// Layers all attend to `sliding_window` keys, as transformers has it for the plain architectures:
/// unless use_sliding_window is false; max_window_layers and layer_types say nothing there.
void parse_window(const Keys& keys, ModelShape& shape) {
  if (!keys.has("sliding_window") || !keys.flag("use_sliding_window", true)) return;
  const std::int64_t window = keys.integer("sliding_window", 1, INT64_MAX);
  if (window >= shape.max_positions) return;
  shape.attentions = {{shape.num_kv_heads, static_cast<int>(window), false, 0}};
  shape.attention_of.assign(static_cast<std::size_t>(shape.num_layers), 0);
}

DType parse_dtype(const Keys& keys) {
  // The newer name counts where both are there, as in transformers.
  const char* key = keys.has("dtype") ? "dtype" : "torch_dtype";
  std::string name = keys.text(key);
  if (name.starts_with("torch.")) name.erase(0, 6);
  for (DType type : {DType::bfloat16, DType::float16, DType::float32}) {
    if (name == name_of(type)) return type;
  }
  fail("configuration key \"{}\" is \"{}\", must be bfloat16, float16 or float32", key, name);
}

Activation parse_activation(const Keys& keys) {
  const std::string name = keys.text("hidden_act");
  if (name == "silu") return Activation::swiglu;
  if (name == "gelu_pytorch_tanh") return Activation::gelu_tanh;
  fail("configuration key \"hidden_act\" is \"{}\", must be silu or gelu_pytorch_tanh", name);
}

QkNorm parse_qk_norm(const Keys& keys) {
  if (!keys.has("qk_norm")) return QkNorm::none;
  const Json& value = keys.at("qk_norm");
  if (value == "whole_row") return QkNorm::whole_row;
  require(value.is_boolean(),
          "configuration key \"qk_norm\" is {}, must be false, true (per head) or \"whole_row\"",
          shown(value));
  return value.get<bool>() ? QkNorm::per_head : QkNorm::none;
}

std::vector<bool> parse_dense_layers(const Keys& keys, int num_layers) {
  std::vector<bool> dense(static_cast<std::size_t>(num_layers), false);
  if (keys.has("first_k_dense_replace")) {
    const std::int64_t first = keys.integer("first_k_dense_replace", 0, num_layers);
    std::fill_n(dense.begin(), first, true);
  }
  if (keys.has("mlp_only_layers")) {
    const Json& list = keys.at("mlp_only_layers");
    require(list.is_array(),
            "configuration key \"mlp_only_layers\" is {}, must be a list of layers", shown(list));
    std::vector<bool> listed(dense.size(), false);
    for (const Json& layer : list) {
      listed[static_cast<std::size_t>(
          Keys::checked_integer("mlp_only_layers", layer, 0, num_layers - 1))] = true;
    }
    if (keys.has("first_k_dense_replace") && listed != dense) {
      fail(
          "configuration keys \"first_k_dense_replace\" ({}) and \"mlp_only_layers\" ({}) name "
          "different dense layers; keep one of them",
          shown(keys.at("first_k_dense_replace")), shown(list));
    }
    dense = listed;
  }
  return dense;
}

int parse_num_experts(const Keys& keys) {
  const char* found = nullptr;
  for (const char* key : {"num_experts", "n_routed_experts", "num_local_experts"}) {
    if (!keys.has(key)) continue;
    if (found != nullptr && keys.at(key) != keys.at(found)) {
      fail("configuration keys \"{}\" ({}) and \"{}\" ({}) differ; keep one of them", found,
           shown(keys.at(found)), key, shown(keys.at(key)));
    }
    found = key;
  }
  return keys.size(found == nullptr ? "num_experts" : found, max_experts);
}

std::vector<std::int32_t> parse_stop_ids(const Keys& keys, int vocab) {
  std::vector<std::int32_t> ids;
  if (!keys.has("eos_token_id")) return ids;
  const Json& value = keys.at("eos_token_id");
  for (const Json& id : value.is_array() ? value : Json::array({value})) {
    ids.push_back(
        static_cast<std::int32_t>(Keys::checked_integer("eos_token_id", id, 0, vocab - 1)));
  }
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

void parse_attention(const Keys& keys, ModelShape& shape) {
  shape.num_heads = keys.size("num_attention_heads", max_heads);
  shape.num_kv_heads = shape.num_heads;
  if (keys.has("num_key_value_heads")) {
    shape.num_kv_heads = keys.size("num_key_value_heads", max_heads);
  }
  require(shape.num_heads % shape.num_kv_heads == 0,
          "configuration key \"num_key_value_heads\" is {}, must divide num_attention_heads ({})",
          shape.num_kv_heads, shape.num_heads);
  if (keys.has("head_dim")) {
    shape.head_dim = keys.size("head_dim", max_head_dim);
  } else {
    require(shape.hidden % shape.num_heads == 0,
            "the configuration has no key \"head_dim\" and hidden_size ({}) is no multiple of "
            "num_attention_heads ({}); add head_dim",
            shape.hidden, shape.num_heads);
    shape.head_dim = shape.hidden / shape.num_heads;
  }
  require(shape.head_dim % 2 == 0 && shape.head_dim <= max_head_dim,
          "configuration key \"head_dim\" is {}, must be an even number up to {} (rotary embedding "
          "turns pairs)",
          shape.head_dim, max_head_dim);
  const std::int64_t rows =
      (std::int64_t{shape.num_heads} + 2 * std::int64_t{shape.num_kv_heads}) * shape.head_dim;
  require(
      rows <= max_fused_rows,
      "the configuration's (num_attention_heads + 2 num_key_value_heads) * head_dim is {}, must "
      "be at most {}",
      rows, max_fused_rows);
  shape.qk_norm = parse_qk_norm(keys);
  shape.rope_theta = keys.number("rope_theta", 1.0, 1e12);
}

void parse_feed_forward(const Keys& keys, ModelShape& shape) {
  shape.activation = parse_activation(keys);
  shape.layer_is_dense = parse_dense_layers(keys, shape.num_layers);
  const bool any_dense = std::find(shape.layer_is_dense.begin(), shape.layer_is_dense.end(),
                                   true) != shape.layer_is_dense.end();
  // Without dense layers their width means nothing and may be absent or 0.
  if (any_dense || keys.has("intermediate_size")) {
    shape.intermediate =
        static_cast<int>(keys.integer("intermediate_size", any_dense ? 1 : 0, max_width));
  }
  shape.moe_intermediate = keys.size("moe_intermediate_size", max_width);
  shape.num_experts = parse_num_experts(keys);
  shape.top_k = keys.size("num_experts_per_tok", max_experts);
  require(shape.top_k <= shape.num_experts,
          "configuration key \"num_experts_per_tok\" is {}, must be at most num_experts ({})",
          shape.top_k, shape.num_experts);
  keys.at("norm_topk_prob");
  shape.norm_topk_prob = keys.flag("norm_topk_prob", true);
}

/// Every single tensor and their sum stay far below int64, whatever the keys say together.
void check_total_size(const ModelConfig& config) {
  std::int64_t total = 0;
  for (const TensorInfo& tensor : tensors_of(config)) {
    std::int64_t elements = 1;
    for (std::int64_t extent : tensor.shape) {
      require(elements <= max_elements / extent,
              "the configuration's tensor {} would have shape [{}], more than {} elements; lower "
              "its sizes",
              tensor.path, fmt::join(tensor.shape, ", "), max_elements);
      elements *= extent;
    }
    total += elements;
    require(total <= max_elements,
            "the configuration describes more than {} parameters; lower its sizes", max_elements);
  }
}

double as_shortest(float value) {
  return std::strtod(fmt::format("{}", value).c_str(), nullptr);
}

}  // namespace

ModelConfig ModelConfig::from_json(std::string_view text) {
  const Json json = io::parse_json_object(text, "the configuration");
  if (json.contains("version")) {
    ModelConfig described = config_of_description(json);
    check_total_size(described);
    return described;
  }
  refuse_unsupported(json);
  const Keys keys(json);
  ModelConfig config;
  ModelShape& shape = config.shape;
  shape.hidden = keys.size("hidden_size", max_width);
  shape.num_layers = keys.size("num_hidden_layers", max_layers);
  shape.vocab = keys.size("vocab_size", compute::max_vocab);
  shape.max_positions = keys.size("max_position_embeddings", max_context);
  shape.rms_eps = static_cast<float>(keys.number("rms_norm_eps", 1e-20, 1.0));
  parse_attention(keys, shape);
  parse_window(keys, shape);
  parse_feed_forward(keys, shape);
  config.dtype = parse_dtype(keys);
  config.tie_word_embeddings = keys.flag("tie_word_embeddings", false);
  config.stop_token_ids = parse_stop_ids(keys, shape.vocab);
  if (keys.has(kept_kinds_key)) {
    read_kept(keys.at(kept_kinds_key), keys.at(kept_of_layer_key), shape);
  }
  check_total_size(config);
  return config;
}

std::string ModelConfig::to_json() const {
  if (!is_plain(shape)) return description_of(*this).dump();
  std::vector<int> dense_layers;
  for (int layer = 0; layer < shape.num_layers; ++layer) {
    if (shape.is_dense(layer)) dense_layers.push_back(layer);
  }
  Json json = {
      {"hidden_size", shape.hidden},
      {"num_hidden_layers", shape.num_layers},
      {"mlp_only_layers", dense_layers},
      {"num_attention_heads", shape.num_heads},
      {"num_key_value_heads", shape.num_kv_heads},
      {"head_dim", shape.head_dim},
      {"intermediate_size", shape.intermediate},
      {"moe_intermediate_size", shape.moe_intermediate},
      {"num_experts", shape.num_experts},
      {"num_experts_per_tok", shape.top_k},
      {"norm_topk_prob", shape.norm_topk_prob},
      {"hidden_act", shape.activation == Activation::swiglu ? "silu" : "gelu_pytorch_tanh"},
      {"qk_norm", shape.qk_norm != QkNorm::none},
      {"rms_norm_eps", as_shortest(shape.rms_eps)},
      {"rope_theta", shape.rope_theta},
      {"vocab_size", shape.vocab},
      {"max_position_embeddings", shape.max_positions},
      {"tie_word_embeddings", tie_word_embeddings},
      {"torch_dtype", std::string(name_of(dtype))},
      {"eos_token_id", stop_token_ids},
  };
  if (shape.qk_norm == QkNorm::whole_row) json["qk_norm"] = "whole_row";
  add_kept(shape, json);
  return json.dump();
}

double gemm_flops_per_token(const ModelShape& shape) {
  double multiply_adds = 0;
  for (const compute::WeightInfo& info : compute::weights_of(shape)) {
    if (info.use != compute::Use::matrix || info.id == compute::Weight::embedding) continue;
    const double times = info.per_expert ? shape.top_k : 1;
    multiply_adds += times * static_cast<double>(info.num_elements());
  }
  return 2.0 * multiply_adds;
}

}  // namespace atl
