#include "app/model/hf_config.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "compute/error.hpp"
#include "io/json_shown.hpp"

namespace atl {
namespace {

using Json = nlohmann::json;
using io::shown;

std::int64_t checked_integer(const char* key, const Json& value, std::int64_t low,
                             std::int64_t high) {
  // 6.0, as some programs write it, is 6.
  constexpr double exact = 9007199254740992.0;
  const double number = value.is_number() ? value.get<double>() : std::nan("");
  const bool whole = std::trunc(number) == number && std::abs(number) <= exact;
  require(whole && number >= static_cast<double>(low) && number <= static_cast<double>(high),
          "key \"{}\" is {}, must be an integer from {} to {}", key, shown(value), low, high);
  return static_cast<std::int64_t>(number);
}

double number_in(const Json& rope, const char* key, double otherwise) {
  if (!rope.contains(key) || rope.at(key).is_null()) return otherwise;
  const double value = rope.at(key).is_number() ? rope.at(key).get<double>() : std::nan("");
  require(std::isfinite(value) && value >= 0, "\"{}\" of the rope is {}, must be a number from 0",
          key, shown(rope.at(key)));
  return value;
}

double mscale_of(double factor, double mscale) {
  return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

/// The names of keys that nothing of a result depends on, or that another key says again.
const std::set<std::string>& silent_keys() {
  static const std::set<std::string> keys = {
      // Of every configuration, about generating, or left by earlier versions:
      "add_cross_attention",
      "bad_words_ids",
      "begin_suppress_tokens",
      "cross_attention_hidden_size",
      "decoder_start_token_id",
      "diversity_penalty",
      "do_sample",
      "early_stopping",
      "encoder_no_repeat_ngram_size",
      "exponential_decay_length_penalty",
      "finetuning_task",
      "forced_bos_token_id",
      "forced_eos_token_id",
      "length_penalty",
      "max_length",
      "min_length",
      "no_repeat_ngram_size",
      "num_beam_groups",
      "num_beams",
      "num_return_sequences",
      "output_scores",
      "prefix",
      "pruned_heads",
      "remove_invalid_values",
      "repetition_penalty",
      "return_dict_in_generate",
      "suppress_tokens",
      "task_specific_params",
      "temperature",
      "tf_legacy_loss",
      "tie_encoder_decoder",
      "tokenizer_class",
      "top_k",
      "top_p",
      "typical_p",
      "use_bfloat16",
      "architectures",
      "model_type",
      "auto_map",
      "transformers_version",
      "torch_dtype",
      "dtype",
      "_name_or_path",
      "use_cache",
      "initializer_range",
      "attention_dropout",
      "hidden_dropout",
      "bos_token_id",
      "pad_token_id",
      "eod_token_id",
      "sep_token_id",
      "eos_token_id",
      "output_router_logits",
      "router_aux_loss_coef",
      "router_jitter_noise",
      "aux_loss_alpha",
      "seq_aux",
      "ep_size",
      "pretraining_tp",
      "num_nextn_predict_layers",
      "num_mtp_modules",
      "num_mtp_layers",
      "mtp_transformer_layers",
      "use_mtp",
      "mtp_num_hidden_layers",
      "max_window_layers",
      "tie_word_embeddings",
      "vocab_size",
      "qk_head_dim",
      "head_dim",
      "num_key_value_heads",
      "rope_scaling",
      "rope_parameters",
      "rope_theta",
      "enable_moe_fp32_combine",
      "_attn_implementation",
      "return_dict",
      "is_decoder",
      "is_encoder_decoder",
      "problem_type",
      "id2label",
      "label2id",
      "text_config",
      "vision_config",
      "quantization_config",
      "index_n_heads",
      "index_head_dim",
      "index_topk_freq",
      "index_skip_topk_offset",
      "index_topk_pattern",
      "indexer_types",
      "indexer_rope_interleave",
      "index_share_for_mtp_iteration",
      "moe_router_dtype",
      "attention_chunk_size",
      "moe_layer_freq",
      "initial_context_length",
      "experts_per_token",
      "chunk_size_feed_forward",
      "output_attentions",
      "output_hidden_states",
      "use_return_dict",
      "torchscript",
      "transformers_weights",
      "mlp_layer_types",
      "layer_types",
      "first_k_dense_replace",
      "swa_rope_theta",
      "partial_rotary_factor",
      "rotary_dim",
      "sliding_window"};
  return keys;
}

}  // namespace

const Json& HfConfig::at(const char* key) const {
  static const Json null;
  used_.insert(key);
  return has(key) ? json_.at(key) : null;
}

std::int64_t HfConfig::integer(const char* key, std::int64_t low, std::int64_t high) const {
  require(has(key), "the configuration has no key \"{}\"; add it", key);
  return checked_integer(key, at(key), low, high);
}

std::int64_t HfConfig::integer(const char* key, std::int64_t low, std::int64_t high,
                               std::int64_t otherwise) const {
  const Json& value = at(key);
  return value.is_null() ? otherwise : checked_integer(key, value, low, high);
}

double HfConfig::number(const char* key, double otherwise) const {
  const Json& value = at(key);
  if (value.is_null()) return otherwise;
  require(value.is_number() && std::isfinite(value.get<double>()),
          "key \"{}\" is {}, must be a number", key, shown(value));
  return value.get<double>();
}

bool HfConfig::flag(const char* key, bool otherwise) const {
  const Json& value = at(key);
  if (value.is_null()) return otherwise;
  require(value.is_boolean() || value == 0 || value == 1, "key \"{}\" is {}, must be true or false",
          key, shown(value));
  return value.is_boolean() ? value.get<bool>() : value == 1;
}

std::optional<std::vector<bool>> HfConfig::layers_of(const char* key, const char* first,
                                                     const char* second, int count) const {
  const Json& list = at(key);
  if (list.is_null()) return std::nullopt;
  require(list.is_array() && list.size() >= static_cast<std::size_t>(count),
          "key \"{}\" is {}, must be a list of {} layers", key, shown(list), count);
  std::vector<bool> result;
  for (int i = 0; i < count; ++i) {
    const Json& name = list[static_cast<std::size_t>(i)];
    require(name == first || name == second, "key \"{}\" has {}, must be {} or {}", key,
            shown(name), first, second);
    result.push_back(name == first);
  }
  return result;
}

void HfConfig::only(const char* key, std::initializer_list<Json> harmless) const {
  const Json& value = at(key);
  if (value.is_null() || std::find(harmless.begin(), harmless.end(), value) != harmless.end()) {
    return;
  }
  std::vector<std::string> works;
  for (const Json& one : harmless) works.push_back(shown(one));
  fail("key \"{}\" is {}, which is not supported; only {}{}no such key works", key, shown(value),
       fmt::join(works, ", "), works.empty() ? "" : " or ");
}

std::vector<std::string> HfConfig::unknown() const {
  std::vector<std::string> keys;
  for (const auto& [key, value] : json_.items()) {
    if (!used_.contains(key) && !silent_keys().contains(key) && !value.is_null()) {
      keys.push_back(key);
    }
  }
  return keys;
}

namespace {

/// The kind of a rope's scaling.
std::string kind_of(const Json& rope) {
  for (const char* key : {"rope_type", "type"}) {
    if (!rope.contains(key) || rope[key].is_null()) continue;
    require(rope[key].is_string(), "\"{}\" of the rope is {}, must be a name", key,
            shown(rope[key]));
    return rope[key].get<std::string>();
  }
  return "default";
}

/// yarn: frequencies between those of the original context and those divided by the factor.
void scale_yarn(const Json& rope, double theta, HfRope& result) {
  const double factor = number_in(rope, "factor", 0);
  const double original = number_in(rope, "original_max_position_embeddings", 0);
  require(factor > 0 && original > 0,
          "a rope of type yarn needs \"factor\" and \"original_max_position_embeddings\"");
  const double mscale = number_in(rope, "mscale", 0);
  const double mscale_all = number_in(rope, "mscale_all_dim", 0);
  const double usual = mscale > 0 && mscale_all > 0
                           ? mscale_of(factor, mscale) / mscale_of(factor, mscale_all)
                           : mscale_of(factor, 1);
  result.rope.factor = number_in(rope, "attention_factor", usual);
  if (mscale_all > 0) result.scale = std::pow(mscale_of(factor, mscale_all), 2);
  const int dims = result.rope.dims;
  const auto dim_of = [&](double rotations) {
    return dims * std::log(original / (rotations * 2 * std::numbers::pi)) / (2 * std::log(theta));
  };
  const double fast = number_in(rope, "beta_fast", 0);
  const double slow = number_in(rope, "beta_slow", 0);
  double low = dim_of(fast > 0 ? fast : 32);
  double high = dim_of(slow > 0 ? slow : 1);
  if (!rope.contains("truncate") || rope["truncate"] != false) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(dims - 1));
  if (low == high) high += 0.001;
  for (int i = 0; i < dims / 2; ++i) {
    double& frequency = result.rope.frequencies[static_cast<std::size_t>(i)];
    const double ramp = std::clamp((i - low) / (high - low), 0.0, 1.0);
    frequency = frequency / factor * ramp + frequency * (1 - ramp);
  }
}

/// Llama 3's: low frequencies are divided by the factor, those between are blended.
void scale_llama3(const Json& rope, HfRope& result) {
  const double factor = number_in(rope, "factor", 0);
  const double original = number_in(rope, "original_max_position_embeddings", 0);
  const double low = number_in(rope, "low_freq_factor", 0);
  const double high = number_in(rope, "high_freq_factor", 0);
  require(factor > 0 && original > 0 && low > 0 && high > low,
          "a rope of type llama3 needs \"factor\", \"original_max_position_embeddings\", "
          "\"low_freq_factor\" and \"high_freq_factor\"");
  for (double& frequency : result.rope.frequencies) {
    const double length = 2 * std::numbers::pi / frequency;
    const double smooth = std::clamp((original / length - low) / (high - low), 0.0, 1.0);
    frequency = (1 - smooth) * frequency / factor + smooth * frequency;
  }
}

}  // namespace

HfRope hf_rope(const HfConfig& config, const HfRopeDefaults& defaults) {
  Json rope = config.at("rope_scaling");
  if (!rope.is_object() || rope.empty()) rope = config.at("rope_parameters");
  if (rope.is_null()) rope = Json::object();
  require(rope.is_object(), "the configuration's rope is {}, must be an object", shown(rope));
  if (defaults.layers != nullptr && rope.contains(defaults.layers)) {
    rope = Json(rope[defaults.layers]);
    require(rope.is_object(), "the rope of {} layers is {}, must be an object", defaults.layers,
            shown(rope));
  }
  double theta = number_in(rope, "rope_theta", config.number("rope_theta", defaults.theta));
  const double partial = number_in(rope, "partial_rotary_factor",
                                   config.number("partial_rotary_factor", defaults.partial));
  require(theta > 1 && partial > 0 && partial <= 1,
          "the configuration's rope has theta {} and turns {} of a head; they must be above 1, and "
          "from 0 to 1",
          theta, partial);
  HfRope result;
  const int dims = static_cast<int>(defaults.head_dim * partial);
  require(dims >= 2 && dims % 2 == 0 && defaults.head_dim <= 2 * 4096,
          "the configuration's rope turns {} of {} dimensions of a head; "
          "an even number from 2 works",
          dims, defaults.head_dim);
  const std::string kind = kind_of(rope);
  if (kind == "dynamic" && rope.contains("alpha") && number_in(rope, "alpha", 0) > 0) {
    theta *= std::pow(number_in(rope, "alpha", 0), static_cast<double>(dims) / (dims - 2));
  }
  result.rope = plain_rope(dims, theta);
  if (kind == "linear") {
    const double factor = number_in(rope, "factor", 1);
    require(factor > 0, "\"factor\" of the rope is 0");
    for (double& frequency : result.rope.frequencies) frequency /= factor;
  } else if (kind == "yarn") {
    scale_yarn(rope, theta, result);
  } else if (kind == "llama3") {
    scale_llama3(rope, result);
  } else {
    // Up to max_position_embeddings, which no request exceeds, a dynamic rope is a plain one.
    require(
        kind == "default" || kind == "dynamic",
        "the configuration's rope has type {}, which is not supported; default, linear, dynamic, "
        "yarn and llama3 are",
        kind);
  }
  for (double& frequency : result.rope.frequencies) frequency = static_cast<float>(frequency);
  result.temperature.beta = static_cast<float>(number_in(rope, "llama_4_scaling_beta", 0));
  if (result.temperature.beta > 0) {
    const double interval = number_in(rope, "original_max_position_embeddings", 1);
    result.temperature.interval = static_cast<int>(std::clamp(interval, 1.0, 134217728.0));
  }
  return result;
}

}  // namespace atl
