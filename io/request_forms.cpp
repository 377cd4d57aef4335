#include "io/request_forms.hpp"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

namespace atl::io {

namespace {

using namespace std::string_view_literals;

constexpr std::string_view blanks = " \t\r\v\f";

/// The name by which iconv knows an encoding in units of two or four bytes; empty for others. Every
/// JSON text begins with an ASCII character, so that zeros stand where it has no byte.
std::string_view wide_encoding(std::string_view start) {
  if (start.starts_with("\xff\xfe\0\0"sv)) return "UTF-32LE";
  if (start.starts_with("\0\0\xfe\xff"sv)) return "UTF-32BE";
  if (start.starts_with("\xff\xfe"sv)) return "UTF-16LE";
  if (start.starts_with("\xfe\xff"sv)) return "UTF-16BE";
  if (start.size() < 4) return "";
  const std::string_view after_first = start.substr(1, 3);
  if (start[0] != '\0' && after_first == "\0\0\0"sv) return "UTF-32LE";
  if (start.starts_with("\0\0\0"sv) && start[3] != '\0') return "UTF-32BE";
  if (start[0] != '\0' && start[1] == '\0') return "UTF-16LE";
  if (start[0] == '\0' && start[1] != '\0') return "UTF-16BE";
  return "";
}

struct Magic {
  std::string_view bytes;
  std::string_view problem;
};

constexpr Magic magics[] = {
    {"\x1f\x8b"sv, "is compressed (gzip); decompress it first, with gzip -dc"},
    {"\x28\xb5\x2f\xfd"sv, "is compressed (zstd); decompress it first, with zstd -dc"},
    {"\xfd\x37zXZ\0"sv, "is compressed (xz); decompress it first, with xz -dc"},
    {"BZh"sv, "is compressed (bzip2); decompress it first, with bzip2 -dc"},
    {"\x04\x22\x4d\x18"sv, "is compressed (lz4); decompress it first, with lz4 -dc"},
    {"PK\x03\x04"sv, "is a ZIP archive; unpack it first"},
    {"7z\xbc\xaf\x27\x1c"sv, "is a 7z archive; unpack it first"},
    {"PAR1"sv, "is a Parquet table; write it as one JSON object a line first"},
    {"ARROW1"sv, "is an Arrow table; write it as one JSON object a line first"},
    {"\x89HDF\r\n"sv, "is an HDF5 file, perhaps the model; check --input"},
};

}  // namespace

std::string problem_of_file(std::string_view start) {
  if (const std::string_view encoding = wide_encoding(start); !encoding.empty()) {
    return fmt::format(
        "the file is {0} text, must be UTF-8; convert it, with iconv -f {0} -t UTF-8", encoding);
  }
  for (const Magic& magic : magics) {
    if (start.starts_with(magic.bytes)) return fmt::format("the file {}", magic.problem);
  }
  return "";
}

std::string advice_for_file(std::string_view first_line) {
  const std::size_t begin = first_line.find_first_not_of(blanks);
  if (begin == std::string_view::npos) return "";
  const std::string_view line =
      first_line.substr(begin, first_line.find_last_not_of(blanks) + 1 - begin);
  if (line.starts_with('[')) {
    return "the file looks like one JSON array: write one object a line, with jq -c '.[]'";
  }
  if (line.starts_with("{'")) {
    return "this looks like Python's own notation: write lines with json.dumps";
  }
  const bool goes_on =
      line.ends_with('{') || line.ends_with('[') || (line.ends_with(',') && !line.ends_with("},"));
  if (line.starts_with('{') && goes_on) {
    return "the file looks like an object spread over lines: write each on one line, with jq -c .";
  }
  if (line.starts_with('{')) return "";
  return "a table or plain text is no input: write one JSON object a line, such as "
         "{\"id\": \"a\", \"prompt\": \"Hello\"}";
}

std::string id_in(std::string_view line) {
  std::size_t i = line.find_first_not_of(blanks);
  if (i == std::string_view::npos || line[i] != '{') return "";
  int depth = 0;
  bool is_next = false;  // the value of "id"
  for (; i < line.size(); ++i) {
    const char c = line[i];
    if (c == '{' || c == '[') ++depth;
    if (c == '}' || c == ']') --depth;
    if (c != '"') {
      is_next = is_next && (c == ':' || blanks.find(c) != std::string_view::npos);
      continue;
    }
    std::size_t end = i + 1;
    while (end < line.size() && line[end] != '"') end += line[end] == '\\' ? 2 : 1;
    if (end >= line.size()) return "";
    const std::string_view text = line.substr(i, end + 1 - i);
    if (is_next) {
      const auto id = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
      return id.is_string() ? id.get<std::string>() : "";
    }
    const std::size_t after = line.find_first_not_of(blanks, end + 1);
    is_next =
        depth == 1 && text == "\"id\"" && after != std::string_view::npos && line[after] == ':';
    i = end;
  }
  return "";
}

}  // namespace atl::io
