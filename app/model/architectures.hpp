#pragma once
// Hugging Face's configurations of the architectures that can be imported.

#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "io/safetensors.hpp"

namespace atl {

/// How one architecture's folder differs from a model file.
struct Architecture {
  const char* name;
  const char* model_type;
  nlohmann::json qk_norm;              ///< as in ModelConfig
  const char* expert_size_key;         ///< the width of an expert
  std::optional<bool> norm_topk_prob;  ///< set: always so, whatever the configuration says
  bool can_slide;                      ///< attention follows `sliding_window`
  const char* moe_block;               ///< name of the MoE block in a layer
  const char* gate;                    ///< names of an expert's matrices
  const char* up;
  const char* down;
  nlohmann::json defaults;  ///< of keys that config.json may leave out
};

/// The architecture of a configuration: by `model_type`, as AutoModelForCausalLM of `transformers`
/// goes; where that says nothing of use, by `architectures`. `warn` hears when the two disagree.
/// Throws Error when neither names a supported one.
const Architecture& architecture_of(const nlohmann::json& hf, const io::Warn& warn);

/// A Hugging Face configuration of this architecture in the form of ModelConfig::from_json, with
/// the defaults that `transformers` gives to absent keys. `stored_dtype` stands in where no type is
/// given. `warn` hears of keys that contradict each other. Throws Error naming a key that cannot be
/// followed.
nlohmann::json convert_config(nlohmann::json hf, const Architecture& architecture,
                              const std::string& stored_dtype, const io::Warn& warn);

}  // namespace atl
