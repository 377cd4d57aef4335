#include "io/json_text.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <set>

#include "compute/error.hpp"
#include "io/json_depth.hpp"
#include "io/json_shown.hpp"

namespace atl::io {
namespace {

using Json = nlohmann::json;

constexpr std::uintmax_t max_file_bytes = 1 << 30;

/// A text whose numbers that JSON does not know stand in quotes.
struct Quoted {
  std::string text;
  std::vector<std::size_t> quotes;  ///< where in `text` a quote was put in, increasing

  /// Where a byte of `text` was before.
  std::size_t original(std::size_t place) const {
    return place - static_cast<std::size_t>(std::lower_bound(quotes.begin(), quotes.end(), place) -
                                            quotes.begin());
  }
};

/// How long the number is that `text` begins with, by JSON's grammar; 0 where it begins with none.
std::size_t number_length(std::string_view text) {
  const auto digits_from = [&](std::size_t place) {
    const std::size_t end = text.find_first_not_of("0123456789", std::min(place, text.size()));
    return (end == std::string_view::npos ? text.size() : end) - std::min(place, text.size());
  };
  std::size_t length = text.starts_with('-') ? 1 : 0;
  std::size_t digits = digits_from(length);
  if (digits == 0) return 0;
  length += text[length] == '0' ? 1 : digits;
  digits = digits_from(length + 1);
  if (text.substr(length).starts_with('.') && digits > 0) length += 1 + digits;
  if (length == text.size() || (text[length] != 'e' && text[length] != 'E')) return length;
  const std::string_view exponent = text.substr(length + 1);
  const std::size_t sign = exponent.starts_with('-') || exponent.starts_with('+') ? 1 : 0;
  digits = digits_from(length + 1 + sign);
  return digits == 0 ? length : length + 1 + sign + digits;
}

Quoted quote_special_numbers(std::string_view text) {
  Quoted result;
  const auto quote = [&] {
    result.quotes.push_back(result.text.size());
    result.text += '"';
  };
  bool in_string = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '"') in_string = !in_string;
    if (in_string && text[i] == '\\' && i + 1 < text.size()) result.text += text[i++];
    std::string_view number;
    for (const std::string_view name : {"NaN", "Infinity", "-Infinity"}) {
      if (!in_string && text.substr(i).starts_with(name)) number = name;
    }
    std::size_t finite = 1;  // bytes that stay as they are
    if (!in_string && number.empty()) {
      const std::string_view digits = text.substr(i, number_length(text.substr(i)));
      const bool infinite = std::isinf(std::strtod(std::string(digits).c_str(), nullptr));
      if (infinite) number = digits;
      finite = std::max<std::size_t>(digits.size(), 1);
    }
    if (number.empty()) {
      result.text += text.substr(i, finite);
      i += finite - 1;
      continue;
    }
    quote();
    result.text += number;
    quote();
    i += number.size() - 1;
  }
  return result;
}

/// What the parser found wrong, without what it says about itself and without the file's bytes.
std::string reason_of(const Json::parse_error& error) {
  std::string text = error.what();
  const std::size_t dash = text.find(" - ");
  if (dash != std::string::npos) text.erase(0, dash + 3);
  const std::size_t bytes = text.find("; last read: ");
  if (bytes == std::string::npos) return text;
  const std::size_t expected = text.rfind("'; expected");
  return text.substr(0, bytes) +
         (expected == std::string::npos || expected < bytes ? "" : text.substr(expected + 1));
}

/// "line 3, column 7" of the byte at `place`.
std::string place_text(std::string_view text, std::size_t place) {
  const std::string_view before = text.substr(0, place);
  const std::size_t line_begin = before.rfind('\n') + 1;  // 0 where there is none
  return fmt::format("line {}, column {}", std::count(before.begin(), before.end(), '\n') + 1,
                     before.size() - line_begin + 1);
}

bool is_utf16(std::string_view text) {
  return text.starts_with("\xff\xfe") || text.starts_with("\xfe\xff") ||
         (text.size() > 1 && (text[0] == '\0') != (text[1] == '\0'));
}

/// Parses `text`, with what JSON does not know in quotes if `quote`. Throws Json::out_of_range at a
/// number that no double holds.
Json parse_quoted(std::string_view text, bool quote, std::string_view what,
                  std::vector<std::string>* repeated) {
  Quoted quoted;
  std::string_view parsed = text;
  if (quote) {
    quoted = quote_special_numbers(text);
    parsed = quoted.text;
  }
  std::string last_key;
  std::vector<std::set<std::string>> keys;  // of the objects that are open, by depth
  const auto watch = [&](int depth, Json::parse_event_t event, Json& value) {
    const auto level = static_cast<std::size_t>(depth);
    if (event == Json::parse_event_t::object_start) {
      keys.resize(level + 1);
      keys.emplace_back();
    } else if (event == Json::parse_event_t::key) {
      last_key = value.get<std::string>();
      const bool is_new = keys.at(level).insert(last_key).second;
      if (!is_new && repeated != nullptr) repeated->push_back(last_key);
    }
    return true;
  };
  try {
    return Json::parse(parsed, watch);
  } catch (const Json::parse_error& error) {
    const std::size_t place = quoted.original(std::max<std::size_t>(error.byte, 1) - 1);
    fail("{}: not valid JSON: {}{}: {}", what, place_text(text, place),
         last_key.empty() ? "" : fmt::format(" (after key {})", shown(last_key)), reason_of(error));
  }
}

}  // namespace

Json parse_json(std::string_view text, std::string_view what, std::vector<std::string>* repeated) {
  require(!text.starts_with("version https://git-lfs"),
          "{}: it is a pointer of Git LFS in place of the file; run git lfs pull", what);
  require_shallow_json(text, what);
  require(!is_utf16(text), "{}: not valid JSON: it is UTF-16; write it as UTF-8", what);
  require(text.find_first_not_of(" \t\r\n") != std::string_view::npos,
          "{}: not valid JSON: it is empty", what);
  const bool special =
      text.find("NaN") != std::string_view::npos || text.find("Infinity") != std::string_view::npos;
  const std::size_t num_repeated = repeated == nullptr ? 0 : repeated->size();
  try {
    return parse_quoted(text, special, what, repeated);
  } catch (const Json::out_of_range&) {
    if (repeated != nullptr) repeated->resize(num_repeated);
    return parse_quoted(text, true, what, repeated);
  }
}

Json parse_json_object(std::string_view text, std::string_view what,
                       std::vector<std::string>* repeated) {
  Json json = parse_json(text, what, repeated);
  require(json.is_object(), "{}: {} instead of an object", what, shown(json));
  return json;
}

Json read_json_object(const std::string& path, std::string_view what,
                      std::vector<std::string>* repeated) {
  std::error_code unknown;
  const std::uintmax_t bytes = std::filesystem::file_size(path, unknown);
  require(unknown || bytes <= max_file_bytes, "{}: {} bytes are too many", what, bytes);
  std::ifstream stream(path, std::ios::binary);
  require(stream.is_open(), "{}: {}", what, std::strerror(errno));
  const std::string text{std::istreambuf_iterator<char>(stream), {}};
  require(!stream.bad(), "{}: {}", what, std::strerror(errno));
  return parse_json_object(text, what, repeated);
}

}  // namespace atl::io
