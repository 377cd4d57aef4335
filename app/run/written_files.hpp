#pragma once
// What a run writes, and what it must not write over.

#include <string>

#include "app/config.hpp"

namespace atl {

/// Throws UsageError when one file would be written over another: results over the requests, or
/// over the model, would destroy them. `written` is the output, or in its place the part of a
/// shard.
void require_separate_files(const RunOptions& options, const std::string& written);

}  // namespace atl
