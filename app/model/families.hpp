#pragma once
// Families of models as Hugging Face has them, beyond the plain ones of architectures.hpp: what a
// configuration describes, and what tensors are called. Nothing else knows of them.

#include <functional>
#include <string>
#include <vector>

#include "app/model/hf_config.hpp"
#include "app/model/model_config.hpp"
#include "app/model/tensors.hpp"
#include "io/safetensors.hpp"

namespace atl {

/// A configuration as a description, and what the importer does with tensors besides.
struct FamilyModel {
  ModelConfig config;
  bool rope_in_pairs = false;  ///< dimensions 2i and 2i + 1 turn together; here i and i + dims / 2
  float final_norm_scale = 1;  ///< what logits are multiplied by
};

/// What tensors of a layer are called, after "model.layers.N."; where there are several names,
/// those of a file as it is published come first.
struct FamilyNames {
  std::vector<const char*> experts = {"mlp.experts"};
  const char* gate = "gate_proj";
  const char* up = "up_proj";
  const char* down = "down_proj";
  std::vector<const char*> router = {"mlp.gate.weight"};
  std::vector<const char*> selection_bias = {"mlp.gate.e_score_correction_bias"};
  std::vector<const char*> shared = {"mlp.shared_experts"};
  const char* q_norm = "self_attn.q_norm";
  const char* k_norm = "self_attn.k_norm";
  std::vector<const char*> sinks = {"self_attn.sinks"};
  /// Experts of a layer in one tensor [experts, in, 2 out], gate and up in turns.
  bool experts_by_columns = false;
  /// Of a shared expert too, gate and up are in one tensor.
  const char* shared_gate_up = nullptr;
  const char* shared_down = nullptr;
  std::vector<const char*> fused_gate_up = {"mlp.experts.gate_up_proj"};
  std::vector<const char*> fused_down = {"mlp.experts.down_proj"};
  const char* left_out = nullptr;  ///< tensors whose names contain it are not needed
};

struct Family {
  const char* name;  ///< of the class
  const char* model_type;
  FamilyModel (*describe)(const HfConfig& config);
  FamilyNames names;
};

const std::vector<Family>& families();

/// The family of a configuration: by model_type, else by architectures, also of its text_config,
/// which then takes the configuration's place. Null: it is none of these.
const Family* family_of(nlohmann::json& hf);

/// The description of a folder's configuration. `stored_dtype` stands in where it names no type.
/// `warn` hears of keys that are not known. Throws Error for what is not supported.
FamilyModel describe_family(const Family& family, const nlohmann::json& hf,
                            const std::string& stored_dtype, const io::Warn& warn);

}  // namespace atl
