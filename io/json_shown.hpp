#pragma once
// JSON values as text, in messages and in files.

#include <nlohmann/json.hpp>
#include <string>

namespace atl::io {

/// A value as it stands in its file, in at most 60 characters: longer ones end with "...". ASCII,
/// with escapes for all else; bytes that are no UTF-8 do not make it throw.
std::string shown(const nlohmann::json& value);

/// A value as JSON text, of one line unless `indent` says how far members stand in. Paths and names
/// of hosts may have any bytes: those that are no UTF-8 become U+FFFD, where dump() alone throws.
template <class Json>
std::string json_text(const Json& value, int indent = -1) {
  return value.dump(indent, ' ', false, Json::error_handler_t::replace);
}

}  // namespace atl::io
