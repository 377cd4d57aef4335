#pragma once
// What a run writes, and what it must not write over.

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "app/config.hpp"

namespace atl {

/// Throws UsageError when one file would be written over another: results over the requests, or
/// over the model, would destroy them. `written` is the output, or in its place the part of a
/// shard.
void require_separate_files(const RunOptions& options, const std::string& written);

/// The same for any `files`, name and path each: those from the `written`-th on are written, the
/// others read. An empty path is none.
void require_separate_files(const std::vector<std::pair<std::string, std::string>>& files,
                            std::size_t written);

/// The file beside the results that names the transport which is being tried, for a start after one
/// that crashed of it; empty where results are written to a pipe or device.
std::string transport_note(const RunOptions& options);

}  // namespace atl
