#pragma once
// What a model file or a checkpoint holds.

#include <string>

namespace atl {

/// Configuration, table of tensors, totals, and with `verify` the result of reading everything and
/// comparing checksums; of a checkpoint its state and sequences. Throws Error listing what is
/// damaged.
std::string inspect_text(const std::string& path, bool verify);

}  // namespace atl
