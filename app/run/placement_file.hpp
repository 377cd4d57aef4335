#pragma once
// The placement that a run's options ask for, and the file that may say it.

#include <string>

#include "app/config.hpp"
#include "app/plan/placement.hpp"

namespace atl {

/// "format" of such files.
inline constexpr const char* placement_format = "atoll-placement";

/// Reads {"format": "atoll-placement", "layers": {"1": [[ranks of expert 0], ...], ...}}; the MoE
/// layers that it does not name are placed evenly; "figures", for people, is not looked at. Throws
/// Error, which begins with the file's name, with what is wrong: another model's layers or experts,
/// one without a place, a rank out of range.
Placement read_placement(const std::string& path, const ModelShape& shape, const Layout& layout);

/// As the options say.
Placement placement_of(const RunOptions& options, const ModelShape& shape, const Layout& layout);

}  // namespace atl
