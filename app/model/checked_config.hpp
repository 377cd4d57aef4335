#pragma once
// A model file's configuration, once its tensors are known to be the ones it describes.

#include "app/model/model_config.hpp"
#include "io/model_file.hpp"

namespace atl {

/// The configuration of a model file, after checking that the file has exactly the tensors which
/// that configuration describes, in its shapes and element type. Throws Error naming the first
/// dataset that differs.
ModelConfig checked_config(const io::ModelFileReader& reader);

}  // namespace atl
