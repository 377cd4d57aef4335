#pragma once
// What the descriptions of families are made of.

#include <nlohmann/json.hpp>
#include <vector>

#include "app/model/families.hpp"
#include "app/model/hf_config.hpp"

namespace atl::family {

inline constexpr std::int64_t most = 1 << 24;  ///< of any width or count
inline constexpr int most_of_head = 4096;      ///< dimensions

/// A width or count: from 1 on, or from 0 where it may be absent.
int size(const HfConfig& hf, const char* key);
int size(const HfConfig& hf, const char* key, int otherwise);

/// What nearly all families have alike.
struct Usual {
  double eps = 1e-6;  ///< where the key is absent
  int positions = 0;  ///< likewise
  const char* eps_key = "rms_norm_eps";
};
FamilyModel usual(const HfConfig& hf, const Usual& defaults);

/// Heads of attention over keys and values; 0: as many KV heads as heads, or hidden over heads.
void grouped_heads(const HfConfig& hf, ModelShape& s, int kv_heads, int head_dim);

/// One rope for all layers, which attend to everything, or by `windowed` to `window` keys.
void attend_alike(ModelShape& s, const HfRope& rope, const std::vector<bool>& windowed = {},
                  int window = 0);

/// So many dense layers come first.
void first_dense(ModelShape& s, std::int64_t count);
/// By mlp_layer_types, else first_k_dense_replace, else so many first ones.
void dense_layers(const HfConfig& hf, ModelShape& s, int otherwise);

/// Experts that every token has: one MLP of so many experts' width, by the key or `otherwise`.
void shared_experts(const HfConfig& hf, ModelShape& s, const char* key, int otherwise);

void experts(const HfConfig& hf, ModelShape& s, const char* count_key, const char* top_k_key,
             const char* width_key);

/// DeepSeek V3's router: sigmoid, a bias for choosing, groups, scale.
void sigmoid_router(const HfConfig& hf, ModelShape& s, bool normalise);

// Descriptions, see Family::describe.
FamilyModel glm4_moe(const HfConfig& hf);
FamilyModel solar_open(const HfConfig& hf);
FamilyModel minimax_m2(const HfConfig& hf);
FamilyModel hy_v3(const HfConfig& hf);
FamilyModel qwen2_moe(const HfConfig& hf);
FamilyModel ernie4_5_moe(const HfConfig& hf);
FamilyModel hunyuan_v1_moe(const HfConfig& hf);
FamilyModel dots1(const HfConfig& hf);
FamilyModel granite_moe(const HfConfig& hf);
FamilyModel gpt_oss(const HfConfig& hf);
FamilyModel mimo_v2_flash(const HfConfig& hf);
FamilyModel deepseek_v2(const HfConfig& hf);
FamilyModel deepseek_v3(const HfConfig& hf);
FamilyModel glm4_moe_lite(const HfConfig& hf);
FamilyModel mistral4(const HfConfig& hf);
FamilyModel deepseek_v32(const HfConfig& hf);
FamilyModel glm_moe_dsa(const HfConfig& hf);

}  // namespace atl::family
