#pragma once
// Version 2 of a model file's configuration: kinds of layers, and for each layer which it is.

#include <nlohmann/json.hpp>

#include "app/model/model_config.hpp"

namespace atl {

/// Reads and checks a configuration of version 2 (its format: io/README.md). Throws Error naming
/// the key, its value and what would work; a key that it does not know is refused too.
ModelConfig config_of_description(const nlohmann::json& json);

/// The way back.
nlohmann::json description_of(const ModelConfig& config);

/// Throws Error naming what does not go together in a model of any version.
void check_shape_of(const ModelShape& shape);

}  // namespace atl
