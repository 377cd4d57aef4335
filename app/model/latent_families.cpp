// Families whose attention is over latents.

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

namespace {

/// Latent attention. Both latents' norms have an epsilon of their own in `transformers`, 1e-6.
void latents(const HfConfig& hf, FamilyModel& model, const HfRopeDefaults& defaults) {
  ModelShape& s = model.config.shape;
  const int rope = size(hf, "qk_rope_head_dim");
  const int nope = size(hf, "qk_nope_head_dim");
  s.value_dim = size(hf, "v_head_dim");
  require(rope <= most_of_head && nope <= most_of_head - rope && s.value_dim <= most_of_head,
          "keys \"qk_rope_head_dim\" ({}), \"qk_nope_head_dim\" ({}) and \"v_head_dim\" ({}) make "
          "heads of more than {} dimensions",
          rope, nope, s.value_dim, most_of_head);
  s.head_dim = nope + rope;
  s.latent.queries = size(hf, "q_lora_rank", 0);
  s.latent.keys = size(hf, "kv_lora_rank");
  s.latent.rope = rope;
  s.num_kv_heads = s.num_heads;
  hf.only("num_key_value_heads", {s.num_heads});
  HfRopeDefaults of_rope = defaults;
  if (of_rope.head_dim == 0) of_rope.head_dim = rope;
  const HfRope turned = hf_rope(hf, of_rope);
  attend_alike(s, turned);
  s.attention_scale = static_cast<float>(turned.scale / std::sqrt(static_cast<double>(s.head_dim)));
  s.temperature = turned.temperature;
  s.qkv_bias = s.output_bias = hf.flag("attention_bias", false);
  require(!s.qkv_bias || s.latent.queries > 0,
          "key \"attention_bias\" is true without \"q_lora_rank\", which is not supported");
  model.rope_in_pairs = hf.flag("rope_interleave", true);
}

}  // namespace

FamilyModel deepseek_v2(const HfConfig& hf) {
  FamilyModel model = usual(hf, {1e-6, 2048});
  ModelShape& s = model.config.shape;
  latents(hf, model, {});
  first_dense(s, size(hf, "first_k_dense_replace", 0));
  experts(hf, s, "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size");
  shared_experts(hf, s, "n_shared_experts", 2);
  hf.only("scoring_func", {"softmax"});
  hf.only("norm_topk_prob", {false});
  hf.only("topk_method", {"greedy", "group_limited_greedy"});
  if (hf.at("topk_method") == "group_limited_greedy") {
    s.router.groups = size(hf, "n_group");
    s.router.top_groups = size(hf, "topk_group");
  } else {
    hf.at("n_group");
    hf.at("topk_group");
  }
  s.router.scale = static_cast<float>(hf.number("routed_scaling_factor", 1));
  s.norm_topk_prob = false;
  return model;
}

FamilyModel deepseek_v3(const HfConfig& hf) {
  FamilyModel model = usual(hf, {1e-6, 4096});
  ModelShape& s = model.config.shape;
  latents(hf, model, {});
  dense_layers(hf, s, 3);
  experts(hf, s, "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size");
  shared_experts(hf, s, "n_shared_experts", 1);
  sigmoid_router(hf, s, true);
  return model;
}

FamilyModel glm4_moe_lite(const HfConfig& hf) {
  FamilyModel model = usual(hf, {1e-5, 202752});
  ModelShape& s = model.config.shape;
  latents(hf, model, {});
  dense_layers(hf, s, 1);
  experts(hf, s, "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size");
  shared_experts(hf, s, "n_shared_experts", 1);
  sigmoid_router(hf, s, true);
  return model;
}

FamilyModel mistral4(const HfConfig& hf) {
  FamilyModel model = usual(hf, {1e-6, 1048576});
  ModelShape& s = model.config.shape;
  require(hf.has("rope_parameters") || hf.has("rope_scaling"),
          "the configuration has no key \"rope_parameters\"; add it");
  // Its share is of a whole head.
  const int rope = size(hf, "qk_rope_head_dim");
  const int head =
      std::min(rope, most_of_head) + std::min(size(hf, "qk_nope_head_dim"), most_of_head);
  latents(hf, model, {head, 10000, static_cast<double>(rope) / head});
  first_dense(s, size(hf, "first_k_dense_replace", 0));
  experts(hf, s, "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size");
  shared_experts(hf, s, "n_shared_experts", 1);
  sigmoid_router(hf, s, true);
  s.router.score = RouterScore::softmax;
  s.router.selection_bias = false;
  return model;
}

namespace {

/// With an index that selects keys, which selects all while there are no more than it takes.
FamilyModel indexed(const HfConfig& hf, double eps, int positions) {
  FamilyModel model = usual(hf, {eps, positions});
  ModelShape& s = model.config.shape;
  latents(hf, model, {});
  dense_layers(hf, s, 3);
  experts(hf, s, "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size");
  shared_experts(hf, s, "n_shared_experts", 1);
  sigmoid_router(hf, s, true);
  s.index_top_k = size(hf, "index_topk", 2048);
  require(s.index_top_k > 0, "key \"index_topk\" is 0, must be at least 1");
  s.max_positions = std::min(s.max_positions, s.index_top_k);
  return model;
}

}  // namespace

FamilyModel deepseek_v32(const HfConfig& hf) {
  return indexed(hf, 1e-6, 4096);
}
FamilyModel glm_moe_dsa(const HfConfig& hf) {
  return indexed(hf, 1e-5, 202752);
}

}  // namespace atl::family
