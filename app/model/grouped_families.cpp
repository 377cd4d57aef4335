// Families whose attention is over keys and values.

#include <algorithm>
#include <cmath>
#include <functional>

#include "app/model/family_parts.hpp"
#include "compute/error.hpp"
#include "compute/sampling.hpp"
#include "io/json_shown.hpp"

namespace atl::family {

using Json = nlohmann::json;
using io::shown;

FamilyModel glm4_moe(const HfConfig& hf) {
  FamilyModel model = usual(hf, {1e-5, 131072});
  ModelShape& s = model.config.shape;
  grouped_heads(hf, s, 8, 0);
  attend_alike(s, hf_rope(hf, {s.head_dim, 10000, 0.5}));
  s.qkv_bias = hf.flag("attention_bias", false);
  if (hf.flag("use_qk_norm", false)) s.qk_norm = QkNorm::per_head;
  first_dense(s, size(hf, "first_k_dense_replace", 1));
  experts(hf, s, "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size");
  sigmoid_router(hf, s, true);
  shared_experts(hf, s, "n_shared_experts", 1);
  return model;
}

FamilyModel solar_open(const HfConfig& hf) {
  FamilyModel model = usual(hf, {1e-5, 131072});
  ModelShape& s = model.config.shape;
  grouped_heads(hf, s, 8, 128);
  attend_alike(s, hf_rope(hf, {s.head_dim, 1e6}));
  s.qkv_bias = hf.flag("attention_bias", false);
  experts(hf, s, "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size");
  sigmoid_router(hf, s, true);
  shared_experts(hf, s, "n_shared_experts", 1);
  return model;
}

FamilyModel minimax_m2(const HfConfig& hf) {
  FamilyModel model = usual(hf, {1e-6, 196608});
  ModelShape& s = model.config.shape;
  grouped_heads(hf, s, 8, 128);
  const double partial = hf.has("rotary_dim") ? hf.number("rotary_dim", 0) / s.head_dim : 1.0;
  attend_alike(s, hf_rope(hf, {s.head_dim, 5e6, partial}));
  hf.only("use_qk_norm", {true});
  hf.only("qk_norm_type", {"per_layer"});
  hf.only("use_routing_bias", {true});
  hf.only("shared_intermediate_size", {0});
  hf.only("scoring_func", {"sigmoid"});
  const Json& kinds = hf.at("attn_type_list");
  require(kinds.is_null() ||
              std::all_of(kinds.begin(), kinds.end(), [](const Json& kind) { return kind == 1; }),
          "key \"attn_type_list\" has other entries than 1, which are not supported");
  s.qk_norm = QkNorm::whole_row;
  experts(hf, s, "num_local_experts", "num_experts_per_tok", "intermediate_size");
  s.router.score = RouterScore::sigmoid;
  s.router.selection_bias = true;
  return model;
}

FamilyModel hy_v3(const HfConfig& hf) {
  FamilyModel model = usual(hf, {1e-5, 131072});
  ModelShape& s = model.config.shape;
  grouped_heads(hf, s, 8, 0);
  attend_alike(s, hf_rope(hf, {s.head_dim, 11158840.0}));
  s.qk_norm = QkNorm::per_head;
  s.qkv_bias = s.output_bias = hf.flag("attention_bias", false);
  dense_layers(hf, s, 1);
  experts(hf, s, "num_experts", "num_experts_per_tok", "moe_intermediate_size");
  s.router.score = RouterScore::sigmoid;
  s.router.selection_bias = true;
  s.router.normalise_floor = 1e-20F;
  s.router.scale = static_cast<float>(hf.number("router_scaling_factor", 2.826));
  shared_experts(hf, s, "num_shared_experts", 1);
  return model;
}

namespace {

/// By `layer_types`, else those from `first` on, or every other one below it.
std::vector<bool> windowed_layers(const HfConfig& hf, const ModelShape& s, bool used,
                                  const std::function<bool(int)>& otherwise) {
  if (const auto listed =
          hf.layers_of("layer_types", "sliding_attention", "full_attention", s.num_layers)) {
    return *listed;
  }
  std::vector<bool> windowed;
  for (int i = 0; i < s.num_layers; ++i) windowed.push_back(used && otherwise(i));
  return windowed;
}

}  // namespace

FamilyModel qwen2_moe(const HfConfig& hf) {
  FamilyModel model = usual(hf, {1e-6, 32768});
  ModelShape& s = model.config.shape;
  grouped_heads(hf, s, 16, 0);
  const int below = size(hf, "max_window_layers", 28);
  const bool slides = hf.flag("use_sliding_window", false);
  const auto windowed =
      windowed_layers(hf, s, slides, [&](int i) { return i % 2 == 0 && i < below; });
  attend_alike(s, hf_rope(hf, {s.head_dim}), windowed,
               slides ? size(hf, "sliding_window", 4096) : 0);
  s.qkv_bias = hf.flag("qkv_bias", true);
  const int step = size(hf, "decoder_sparse_step", 1);
  require(step > 0, "key \"decoder_sparse_step\" is 0, must be at least 1");
  const Json& dense = hf.at("mlp_only_layers");
  for (int i = 0; i < s.num_layers; ++i) {
    const bool listed = dense.is_array() && std::find(dense.begin(), dense.end(), i) != dense.end();
    s.layer_is_dense[static_cast<std::size_t>(i)] = listed || (i + 1) % step != 0;
  }
  experts(hf, s, "num_experts", "num_experts_per_tok", "moe_intermediate_size");
  s.norm_topk_prob = hf.flag("norm_topk_prob", false);
  s.shared_intermediate = size(hf, "shared_expert_intermediate_size", 5632);
  s.shared_gate = s.shared_intermediate > 0;
  return model;
}

FamilyModel ernie4_5_moe(const HfConfig& hf) {
  FamilyModel model = usual(hf, {1e-5, 131072});
  ModelShape& s = model.config.shape;
  grouped_heads(hf, s, 4, 0);
  attend_alike(s, hf_rope(hf, {s.head_dim, 500000.0}));
  model.rope_in_pairs = true;
  hf.only("use_bias", {false});
  const int start = size(hf, "moe_layer_start_index", 1);
  const std::int64_t end = hf.integer("moe_layer_end_index", -1, 4096, -1);
  const int interval = size(hf, "moe_layer_interval", 1);
  require(interval > 0, "key \"moe_layer_interval\" is 0, must be at least 1");
  for (int i = 0; i < s.num_layers; ++i) {
    const bool sparse = (i + 1) % interval == 0 && i >= start && (end == -1 || i <= end);
    s.layer_is_dense[static_cast<std::size_t>(i)] = !sparse;
  }
  const bool renamed = !hf.has("moe_num_experts");
  experts(hf, s, renamed ? "num_experts" : "moe_num_experts",
          hf.has("moe_k") ? "moe_k" : "num_experts_per_tok", "moe_intermediate_size");
  s.router.selection_bias = true;
  s.router.normalise_floor = static_cast<float>(hf.number("moe_norm_min", 1e-12));
  shared_experts(hf, s, "moe_num_shared_experts", 2);
  model.config.tie_word_embeddings = true;
  return model;
}

namespace {

/// A number, or a list of one for each layer, which must be alike.
int alike(const HfConfig& hf, const char* key, int otherwise) {
  const Json& value = hf.at(key);
  if (!value.is_array()) return size(hf, key, otherwise);
  require(
      !value.empty() && value[0].is_number_integer() &&
          std::all_of(value.begin(), value.end(), [&](const Json& one) { return one == value[0]; }),
      "key \"{}\" is {}; layers that differ in it are not supported", key, shown(value));
  return static_cast<int>(HfConfig(Json{{key, value[0]}}).integer(key, 0, most));
}

}  // namespace

FamilyModel hunyuan_v1_moe(const HfConfig& hf) {
  FamilyModel model = usual(hf, {1e-5, 2048});
  ModelShape& s = model.config.shape;
  grouped_heads(hf, s, 0, 0);
  attend_alike(s, hf_rope(hf, {s.head_dim}));
  s.qk_norm = QkNorm::per_head;
  s.norm_after_rope = true;
  s.qkv_bias = s.output_bias = hf.flag("attention_bias", false);
  hf.only("use_qk_norm", {true});
  hf.only("use_cla", {false});
  hf.only("use_mla", {false});
  s.num_experts = alike(hf, "num_experts", 1);
  s.top_k = alike(hf, "moe_topk", 1);
  s.moe_intermediate = size(hf, "intermediate_size");
  require(
      alike(hf, "moe_intermediate_size", s.moe_intermediate) == s.moe_intermediate,
      "keys \"moe_intermediate_size\" and \"intermediate_size\" differ, which is not supported");
  require(alike(hf, "num_shared_expert", 1) == 1,
          "key \"num_shared_expert\" is not 1, which is not supported");
  s.shared_intermediate = s.moe_intermediate;
  require(s.top_k >= 1 && s.top_k <= s.num_experts,
          "key \"moe_topk\" is {}, must be from 1 to num_experts ({})", s.top_k, s.num_experts);
  return model;
}

FamilyModel dots1(const HfConfig& hf) {
  FamilyModel model = usual(hf, {1e-6, 2048});
  ModelShape& s = model.config.shape;
  grouped_heads(hf, s, 32, 0);
  const int from = size(hf, "max_window_layers", 62);
  const auto windowed =
      windowed_layers(hf, s, hf.has("sliding_window"), [&](int i) { return i >= from; });
  attend_alike(s, hf_rope(hf, {s.head_dim}), windowed, size(hf, "sliding_window", 4096));
  s.qk_norm = QkNorm::per_head;
  s.qkv_bias = s.output_bias = hf.flag("attention_bias", false);
  first_dense(s, size(hf, "first_k_dense_replace", 0));
  experts(hf, s, "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size");
  sigmoid_router(hf, s, false);
  shared_experts(hf, s, "n_shared_experts", 0);
  return model;
}

/// Granite adds residual_multiplier times what a layer gives. A residual stream that is smaller by
/// that factor is the same one after any norm whose epsilon is smaller by its square.
FamilyModel granite_moe(const HfConfig& hf) {
  FamilyModel model = usual(hf, {1e-6, 2048});
  ModelShape& s = model.config.shape;
  grouped_heads(hf, s, 0, 0);
  attend_alike(s, hf_rope(hf, {s.head_dim}));
  s.qkv_bias = s.output_bias = hf.flag("attention_bias", false);
  const double residual = hf.number("residual_multiplier", 1);
  const double logits = hf.number("logits_scaling", 1);
  require(residual > 0 && logits > 0,
          "keys \"residual_multiplier\" ({}) and \"logits_scaling\" ({}) must be above 0", residual,
          logits);
  s.embedding_scale = static_cast<float>(hf.number("embedding_multiplier", 1) / residual);
  s.rms_eps = static_cast<float>(s.rms_eps / (residual * residual));
  s.attention_scale = static_cast<float>(hf.number("attention_multiplier", 1));
  require(s.embedding_scale > 0 && s.attention_scale > 0,
          "keys \"embedding_multiplier\" and \"attention_multiplier\" must be above 0");
  model.final_norm_scale = static_cast<float>(1 / logits);
  experts(hf, s, "num_local_experts", "num_experts_per_tok", "intermediate_size");
  s.router.score = RouterScore::softmax_of_chosen;
  s.shared_intermediate = size(hf, "shared_intermediate_size", 0);
  return model;
}

FamilyModel gpt_oss(const HfConfig& hf) {
  FamilyModel model = usual(hf, {1e-5, 131072});
  ModelShape& s = model.config.shape;
  grouped_heads(hf, s, 8, 64);
  const bool scaled = hf.has("rope_scaling") || hf.has("rope_parameters");
  require(scaled, "the configuration has no key \"rope_scaling\"; add it");
  const auto windowed = windowed_layers(hf, s, true, [](int i) { return i % 2 == 0; });
  attend_alike(s, hf_rope(hf, {s.head_dim, 150000.0}), windowed, size(hf, "sliding_window", 128));
  for (AttentionKind& kind : s.attentions) kind.sinks = true;
  s.qkv_bias = s.output_bias = hf.flag("attention_bias", true);
  experts(hf, s, "num_local_experts", "num_experts_per_tok", "intermediate_size");
  s.activation = Activation::swiglu_clamped;
  s.clamp_limit = static_cast<float>(hf.number("swiglu_limit", 7));
  s.clamp_alpha = static_cast<float>(hf.number("swiglu_alpha", 1.702));
  s.expert_bias = true;
  s.router.logit_bias = true;
  s.router.score = RouterScore::softmax_of_chosen;
  return model;
}

namespace {

/// Of each layer, whether it has a window; published files say so by hybrid_layer_pattern.
std::vector<bool> mimo_windows(const HfConfig& hf, const ModelShape& s) {
  const Json& pattern = hf.at("hybrid_layer_pattern");
  if (!pattern.is_array() || hf.has("layer_types")) {
    return windowed_layers(hf, s, true, [](int i) { return i != 0 && (i + 1) % 6 != 0; });
  }
  std::vector<bool> windowed;
  for (const Json& one : pattern) windowed.push_back(one == 1);
  require(windowed.size() == static_cast<std::size_t>(s.num_layers),
          "key \"hybrid_layer_pattern\" has {} entries for {} layers", windowed.size(),
          s.num_layers);
  return windowed;
}

}  // namespace

FamilyModel mimo_v2_flash(const HfConfig& hf) {
  const bool renamed = hf.has("layernorm_epsilon");
  FamilyModel model = usual(hf, {1e-5, 131072, renamed ? "layernorm_epsilon" : "rms_norm_eps"});
  ModelShape& s = model.config.shape;
  grouped_heads(hf, s, 4, 192);
  s.value_dim = size(hf, "v_head_dim", 128);
  for (const auto& [key, value] : {std::pair{"swa_num_attention_heads", s.num_heads},
                                   {"swa_num_key_value_heads", 2 * s.num_kv_heads},
                                   {"swa_head_dim", s.head_dim},
                                   {"swa_v_head_dim", s.value_dim}}) {
    hf.only(key, {value});
  }
  hf.only("add_swa_attention_sink_bias", {true});
  hf.only("add_full_attention_sink_bias", {false});
  int window = size(hf, "sliding_window", 129);
  if (hf.has("sliding_window_size")) window = size(hf, "sliding_window_size") + 1;
  // The key of its own is the full layers'; windowed ones have another.
  const double theta = hf.number("swa_rope_theta", 10000);
  const bool nested = hf.at("rope_parameters").is_object();
  HfRope full = hf_rope(hf, {s.head_dim, 5e6, 0.334, "full_attention"});
  HfRope sliding = full;
  if (nested) {
    sliding = hf_rope(hf, {s.head_dim, 1e4, 0.334, "sliding_attention"});
  } else {
    sliding.rope = plain_rope(full.rope.dims, theta);
    for (double& frequency : sliding.rope.frequencies) frequency = static_cast<float>(frequency);
  }
  s.ropes = {full.rope, sliding.rope};
  s.attentions = {{s.num_kv_heads, 0, false, 0}, {2 * s.num_kv_heads, window, true, 1}};
  for (const bool windowed : mimo_windows(hf, s)) s.attention_of.push_back(windowed ? 1 : 0);
  s.num_kv_heads *= 2;
  s.qkv_bias = hf.flag("attention_bias", false);
  if (!hf.is_null("attention_value_scale")) {
    s.value_scale = static_cast<float>(hf.number("attention_value_scale", 0.707));
  }
  dense_layers(hf, s, 1);
  hf.only("n_shared_experts", {0});
  experts(hf, s, "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size");
  sigmoid_router(hf, s, true);
  return model;
}

}  // namespace atl::family
