#pragma once
// JSON values in messages.

#include <nlohmann/json_fwd.hpp>
#include <string>

namespace atl::io {

/// A value as it stands in its file, in at most 60 characters: longer ones end with "...". ASCII,
/// with escapes for all else; bytes that are no UTF-8 do not make it throw.
std::string shown(const nlohmann::json& value);

}  // namespace atl::io
