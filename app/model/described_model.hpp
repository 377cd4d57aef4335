#pragma once
// A model that a JSON file describes, for atoll init and plan.

#include <string>

#include "app/model/kept_weights.hpp"
#include "app/model/model_config.hpp"

namespace atl {

/// Reads a description in the form that atoll inspect shows, or the config.json of a supported
/// Hugging Face architecture, which names that. `weights`: whether what its quantization_config
/// says is in few bits stays so. Throws Error naming the file and what is wrong.
ModelConfig described_model(const std::string& path, KeptWeights weights = KeptWeights::none);

}  // namespace atl
