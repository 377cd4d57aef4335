#pragma once
// What can be said of text that is no request: forms in which whole files come, ids of broken
// lines.

#include <cstdint>
#include <string>
#include <string_view>

namespace atl::io {

/// What a file is that begins with `start` (a few bytes are enough) and holds no lines of UTF-8:
/// other encodings, compressed, binary. A problem with its remedy; empty for all else.
std::string problem_of_file(std::string_view start);

/// What the lines of a file are together: learnt line by line, asked at the end.
class FileForm {
 public:
  /// The next line that is not blank, or its beginning where it is very long.
  void add(std::string_view line);
  /// What the file is, where it is one JSON array, one object around all requests or objects with
  /// commas between them, over several lines; with its remedy. Empty where lines stand by
  /// themselves, a few of them broken perhaps.
  std::string problem() const;

 private:
  std::int64_t lines_ = 0;
  std::int64_t objects_ = 0;   ///< lines that are one object
  std::int64_t elements_ = 0;  ///< lines that are one object and a comma
  int depth_ = 0;              ///< brackets open since the first line
  char opening_ = '\0';        ///< the first bracket of the first line, where that leaves any open
  bool is_closed_ = false;     ///< and a later line closed them
  bool has_inner_ = false;     ///< an object within the first line's object is a line by itself
  std::string key_;            ///< before the array of the requests
};

/// What to do about the file, after the reason why its first line (not blank) was refused: one
/// JSON array, pretty-printed objects, no JSON at all. Empty where the line looks like a request.
std::string advice_for_file(std::string_view first_line);

/// Why a line is not valid JSON, with the remedy: several objects stand on it. Empty for others.
std::string several_objects(std::string_view line);
/// The same for bytes that are not UTF-8.
std::string not_utf8(std::string_view line);

/// The id of a line that is not valid JSON, under `key`, where that much of it can be read; empty
/// otherwise.
std::string id_in(std::string_view line, std::string_view key);

}  // namespace atl::io
