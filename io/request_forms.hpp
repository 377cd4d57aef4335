#pragma once
// What can be said of text that is no request: forms in which whole files come, ids of broken
// lines.

#include <string>
#include <string_view>

namespace atl::io {

/// What a file is that begins with `start` (a few bytes are enough) and holds no lines of UTF-8:
/// other encodings, compressed, binary. A problem with its remedy; empty for all else.
std::string problem_of_file(std::string_view start);

/// What to do about the file, after the reason why its first line (not blank) was refused: one
/// JSON array, pretty-printed objects, no JSON at all. Empty where the line looks like a request.
std::string advice_for_file(std::string_view first_line);

/// The "id" of a line that is not valid JSON, where that much of it can be read; empty otherwise.
std::string id_in(std::string_view line);

}  // namespace atl::io
