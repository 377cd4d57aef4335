#pragma once
// Shapes of tiny models with what version 2 of files describes.

#include <cmath>
#include <utility>
#include <vector>

#include "tests/tiny_model.hpp"

namespace atl::testing {

/// The first kind of attention for layers 0 and 2, the last one for layer 1.
inline void set_attention(ModelShape& s, std::vector<AttentionKind> kinds) {
  s.attentions = std::move(kinds);
  s.attention_of = {0, static_cast<std::uint8_t>(s.attentions.size() - 1), 0};
}

inline void set_latents(ModelShape& s, int queries) {
  s.num_kv_heads = s.num_heads;
  s.head_dim = 24;
  s.value_dim = 20;
  s.latent = {queries, 32, 8, 1e-5F};
  s.ropes = {plain_rope(8, 10000)};
  set_attention(s, {{s.num_heads, 0, false, 0}});
}

/// Other routers, shared experts and norms.
inline std::vector<ModelKind> routed_kinds() {
  return {
      model_kind("sigmoid_groups_shared_bias",
                 [](ModelShape& s) {
                   s.num_experts = 8;
                   s.top_k = 3;
                   s.router = {RouterScore::sigmoid, false,  true, 4, 2,
                               GroupScore::two_best, 1e-20F, 2.5F};
                   s.shared_intermediate = 56;
                   s.qkv_bias = true;
                   s.qk_norm = QkNorm::per_head;
                   s.ropes = {plain_rope(8, 10000)};
                   set_attention(s, {{2, 0, false, 0}});
                 }),
      model_kind("weighted_shared_norm_after_rope",
                 [](ModelShape& s) {
                   s.norm_topk_prob = false;
                   s.shared_intermediate = 30;
                   s.shared_gate = true;
                   s.qk_norm = QkNorm::per_head;
                   s.norm_after_rope = true;
                   s.embedding_scale = 3;
                   s.attention_scale = 0.2F;
                 }),
      model_kind("weighted_shared_softmax_of_chosen",
                 [](ModelShape& s) {
                   s.router.score = RouterScore::softmax_of_chosen;
                   s.router.logit_bias = true;
                   s.shared_intermediate = 30;
                   s.shared_gate = true;
                   s.qk_norm = QkNorm::per_head;
                   s.norm_after_rope = true;
                   s.attention_scale = 0.3F;
                   s.ropes = {plain_rope(12, 2000)};
                 }),
      model_kind("whole_row_partial_rope_softmax_bias",
                 [](ModelShape& s) {
                   s.router.selection_bias = true;
                   s.router.normalise_floor = 1e-12F;
                   s.qk_norm = QkNorm::whole_row;
                   s.ropes = {plain_rope(6, 500)};
                   set_attention(s, {{2, 0, false, 0}});
                 }),
  };
}

/// Layers that attend in different ways.
inline std::vector<ModelKind> attending_kinds() {
  return {
      model_kind("sinks_windows_biases_clamped",
                 [](ModelShape& s) {
                   s.layer_is_dense = {false, false, false};
                   s.qkv_bias = s.output_bias = s.expert_bias = true;
                   s.activation = Activation::swiglu_clamped;
                   s.clamp_limit = 1.5F;
                   s.router.score = RouterScore::softmax_of_chosen;
                   s.router.logit_bias = true;
                   s.ropes = {plain_rope(16, 150000)};
                   s.ropes[0].factor = 1.3;
                   set_attention(s, {{2, 17, true, 0}, {2, 0, true, 0}});
                 }),
      model_kind("kv_heads_by_layer_narrow_values",
                 [](ModelShape& s) {
                   s.num_kv_heads = 4;
                   s.value_dim = 12;
                   s.value_scale = 0.7F;
                   s.ropes = {plain_rope(16, 5e6), plain_rope(4, 100)};
                   set_attention(s, {{1, 0, false, 0}, {4, 70, true, 1}});
                 }),
  };
}

/// Attention over latents.
inline std::vector<ModelKind> latent_kinds() {
  return {
      model_kind("latents",
                 [](ModelShape& s) {
                   set_latents(s, 28);
                   s.qkv_bias = s.output_bias = true;
                   s.temperature = {0.1F, 64};
                 }),
      model_kind("latents_queries_at_once_best_groups",
                 [](ModelShape& s) {
                   set_latents(s, 0);
                   s.num_experts = 6;
                   s.router.groups = 3;
                   s.router.top_groups = 2;
                   s.router.scale = 16;
                   s.norm_topk_prob = false;
                 }),
  };
}

/// Kinds of models that files of version 1 do not describe.
inline std::vector<ModelKind> described_kinds() {
  std::vector<ModelKind> kinds;
  for (auto& some : {routed_kinds(), attending_kinds(), latent_kinds()}) {
    kinds.insert(kinds.end(), some.begin(), some.end());
  }
  return kinds;
}

}  // namespace atl::testing
