#pragma once
// Models from elsewhere.

#include <string>

#include "app/model/kept_weights.hpp"
#include "io/safetensors.hpp"

namespace atl {

/// Prints a line of an import to standard error.
void warn_of_import(const std::string& line);

/// Turns a Hugging Face folder (config.json and safetensors files) into a model file. Supports
/// the architectures of architectures.hpp and families.hpp. The folder is read as
/// `transformers` 5 reads it; where it can be read in two ways, `warn` hears which was taken, and
/// of values that are not finite, by tensor. Tensors are converted to the folder's `dtype` (without
/// one, to the embedding's type) one at a time. Stop ids are those of generation_config.json, else
/// of config.json. Throws Error naming what is missing, misshapen or not supported; then no file is
/// left.
void import_hf(const std::string& folder, const std::string& output,
               const io::Warn& warn = warn_of_import, KeptWeights weights = KeptWeights::none);

/// The configuration (as for ModelConfig::from_json) that a folder's config.json amounts to, with
/// the defaults that the `transformers` library gives to absent keys. `stored_dtype` stands in for
/// an absent `dtype`.
std::string config_from_hf(const std::string& hf_json, const std::string& stored_dtype);

}  // namespace atl
