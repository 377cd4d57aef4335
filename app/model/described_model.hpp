#pragma once
// A model that a JSON file describes, for atoll init.

#include <string>

#include "app/model/model_config.hpp"

namespace atl {

/// Reads a description in the form that atoll inspect shows, or the config.json of a supported
/// Hugging Face architecture, which names that. Throws Error naming the file and what is wrong.
ModelConfig described_model(const std::string& path);

}  // namespace atl
