#pragma once
// A model: its configuration, and the presets.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "compute/types.hpp"

namespace atl {

/// What a model file's `config` says. Keys of version 1 are Hugging Face's, version 2 describes
/// kinds of layers (see io/README.md); a model that the first can describe is written so.
struct ModelConfig {
  ModelShape shape;
  DType dtype = DType::bfloat16;     ///< of the tensors on file (`torch_dtype`)
  bool tie_word_embeddings = false;  ///< lm_head is the embedding; no /lm_head/weight on file
  std::vector<std::int32_t> stop_token_ids;  ///< `eos_token_id`, a number or a list; may be empty

  /// Reads and checks a configuration. Throws Error naming the key, its value and what would work.
  static ModelConfig from_json(std::string_view json);
  /// The configuration as JSON, with the keys that from_json reads; equal configs, equal text.
  std::string to_json() const;
};

/// Names of the presets, and a preset's configuration (throws UsageError listing the names).
std::vector<std::string> preset_names();
ModelConfig preset(std::string_view name);

/// Multiply-adds times two that one token needs in the GEMMs of a forward pass, without attention
/// over the context (that is 4 * heads * head_dim * context per layer).
double gemm_flops_per_token(const ModelShape& shape);

}  // namespace atl
