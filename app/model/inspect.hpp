#pragma once
// What a model file or a checkpoint holds.

#include <string>

#include "app/model/model_config.hpp"

namespace atl {

namespace io {
class ModelFileReader;
}  // namespace io

/// The configuration of a model file, after checking that the file has exactly the tensors which
/// that configuration describes, in its shapes and element type. Throws Error naming the first
/// dataset that differs.
ModelConfig checked_config(const io::ModelFileReader& reader);

/// Configuration, table of tensors, totals, and with `verify` the result of reading everything and
/// comparing checksums; of a checkpoint its state and sequences. Throws Error listing what is
/// damaged.
std::string inspect_text(const std::string& path, bool verify);

}  // namespace atl
