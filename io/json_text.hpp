#pragma once
// JSON from files that other programs wrote.

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace atl::io {

/// Parses a JSON text as Python's `json` does: of a key that comes twice the last value counts, and
/// NaN, Infinity, -Infinity and numbers that no double holds are values (they become strings, which
/// no key of ours takes).
/// `repeated`, where given, gets the keys that come twice in an object. Throws Error that starts
/// with `what` and names line and column (both from 1, columns in bytes) and the last key before
/// the fault.
nlohmann::json parse_json(std::string_view text, std::string_view what,
                          std::vector<std::string>* repeated = nullptr);

/// The same for a text that has to be an object.
nlohmann::json parse_json_object(std::string_view text, std::string_view what,
                                 std::vector<std::string>* repeated = nullptr);

/// The object in a file.
nlohmann::json read_json_object(const std::string& path, std::string_view what,
                                std::vector<std::string>* repeated = nullptr);

}  // namespace atl::io
