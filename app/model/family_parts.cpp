#include "app/model/family_parts.hpp"

#include <algorithm>
#include <cmath>
#include <functional>

#include "compute/error.hpp"
#include "compute/sampling.hpp"
#include "io/json_shown.hpp"

namespace atl::family {

using Json = nlohmann::json;
using io::shown;

int size(const HfConfig& hf, const char* key) {
  return static_cast<int>(hf.integer(key, 1, most));
}
int size(const HfConfig& hf, const char* key, int otherwise) {
  return static_cast<int>(hf.integer(key, 0, most, otherwise));
}

FamilyModel usual(const HfConfig& hf, const Usual& defaults) {
  FamilyModel model;
  ModelShape& s = model.config.shape;
  s.hidden = size(hf, "hidden_size");
  s.num_layers = static_cast<int>(hf.integer("num_hidden_layers", 1, 4096));
  s.vocab = static_cast<int>(hf.integer("vocab_size", 1, compute::max_vocab));
  s.max_positions =
      defaults.positions == 0
          ? size(hf, "max_position_embeddings")
          : static_cast<int>(hf.integer("max_position_embeddings", 1, 1 << 27, defaults.positions));
  s.rms_eps = static_cast<float>(hf.number(defaults.eps_key, defaults.eps));
  s.num_heads = size(hf, "num_attention_heads");
  s.layer_is_dense.assign(static_cast<std::size_t>(s.num_layers), false);
  hf.only("hidden_act", {"silu", "swish"});
  for (const char* key : {"attn_logit_softcapping", "final_logit_softcapping", "clip_qkv"}) {
    hf.only(key, {});
  }
  hf.only("mlp_bias", {false});
  return model;
}

void grouped_heads(const HfConfig& hf, ModelShape& s, int kv_heads, int head_dim) {
  s.num_kv_heads = size(hf, "num_key_value_heads", kv_heads == 0 ? s.num_heads : kv_heads);
  s.head_dim = size(hf, "head_dim", head_dim == 0 ? s.hidden / s.num_heads : head_dim);
  require(
      s.num_kv_heads > 0 && s.head_dim > 0 && s.head_dim <= most_of_head &&
          s.num_heads % s.num_kv_heads == 0,
      "keys \"num_attention_heads\" ({}), \"num_key_value_heads\" ({}) and \"head_dim\" ({}) do "
      "not go together",
      s.num_heads, s.num_kv_heads, s.head_dim);
}

void attend_alike(ModelShape& s, const HfRope& rope, const std::vector<bool>& windowed,
                  int window) {
  s.ropes = {rope.rope};
  s.attentions = {{s.num_kv_heads, 0, false, 0}};
  s.attention_of.assign(static_cast<std::size_t>(s.num_layers), 0);
  if (std::find(windowed.begin(), windowed.end(), true) == windowed.end()) return;
  require(window > 0, "layers have sliding_attention, but there is no \"sliding_window\"");
  s.attentions.push_back({s.num_kv_heads, window, false, 0});
  for (std::size_t i = 0; i < windowed.size(); ++i) s.attention_of[i] = windowed[i] ? 1 : 0;
}

void first_dense(ModelShape& s, std::int64_t count) {
  for (std::int64_t i = 0; i < std::min<std::int64_t>(count, s.num_layers); ++i) {
    s.layer_is_dense[static_cast<std::size_t>(i)] = true;
  }
}

void dense_layers(const HfConfig& hf, ModelShape& s, int otherwise) {
  if (const auto listed = hf.layers_of("mlp_layer_types", "dense", "sparse", s.num_layers)) {
    s.layer_is_dense = *listed;
    return;
  }
  first_dense(s, size(hf, "first_k_dense_replace", otherwise));
}

void shared_experts(const HfConfig& hf, ModelShape& s, const char* key, int otherwise) {
  const std::int64_t width = std::int64_t{size(hf, key, otherwise)} * s.moe_intermediate;
  require(width <= most, "key \"{}\" makes a shared expert of width {}, more than {}", key, width,
          most);
  s.shared_intermediate = static_cast<int>(width);
}

void experts(const HfConfig& hf, ModelShape& s, const char* count_key, const char* top_k_key,
             const char* width_key) {
  // `transformers` takes some names for another.
  for (const char* alias : {"n_routed_experts", "num_local_experts", "num_experts"}) {
    if (!hf.has(count_key) && hf.has(alias)) count_key = alias;
  }
  s.num_experts = size(hf, count_key);
  s.top_k = size(hf, top_k_key);
  s.moe_intermediate = size(hf, width_key);
  const bool any_dense =
      std::find(s.layer_is_dense.begin(), s.layer_is_dense.end(), true) != s.layer_is_dense.end();
  if (any_dense) s.intermediate = size(hf, "intermediate_size");
  require(s.top_k >= 1 && s.top_k <= s.num_experts, "key \"{}\" is {}, must be from 1 to {} ({})",
          top_k_key, s.top_k, s.num_experts, count_key);
}

void sigmoid_router(const HfConfig& hf, ModelShape& s, bool normalise) {
  hf.only("scoring_func", {"sigmoid"});
  hf.only("topk_method", {"noaux_tc"});
  s.router.score = RouterScore::sigmoid;
  s.router.selection_bias = true;
  s.router.groups = size(hf, "n_group", 1);
  s.router.top_groups = size(hf, "topk_group", 1);
  s.router.group_score = GroupScore::two_best;
  s.router.normalise_floor = 1e-20F;
  s.router.scale = static_cast<float>(hf.number("routed_scaling_factor", 1));
  s.norm_topk_prob = hf.flag("norm_topk_prob", normalise);
}

}  // namespace atl::family
