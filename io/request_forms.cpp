#include "io/request_forms.hpp"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "io/utf8.hpp"

namespace atl::io {

namespace {

/// Follows the brackets of JSON through a text, byte by byte.
class JsonBrackets {
 public:
  void add(char c) {
    if (escaped_ || (in_string_ && c != '"')) {
      escaped_ = !escaped_ && c == '\\';
    } else if (c == '"') {
      in_string_ = !in_string_;
    } else if (c == '[' || c == '{') {
      ++depth_;
    } else if (c == ']' || c == '}') {
      --depth_;
    }
  }
  int depth() const { return depth_; }
  bool in_string() const { return in_string_; }

 private:
  int depth_ = 0;
  bool in_string_ = false;
  bool escaped_ = false;
};

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
    {"\x1f\x9d"sv, "is compressed (compress); decompress it first, with gzip -dc"},
    {"PK\x03\x04"sv, "is a ZIP archive; unpack it first"},
    {"7z\xbc\xaf\x27\x1c"sv, "is a 7z archive; unpack it first"},
    {"PAR1"sv, "is a Parquet table; write it as one JSON object a line first"},
    {"ARROW1"sv, "is an Arrow table; write it as one JSON object a line first"},
    {"\x89HDF\r\n"sv, "is an HDF5 file, perhaps the model; check --input"},
    {"version https://git-lfs"sv,
     "is a pointer of Git LFS; fetch the file itself, with git lfs pull"},
};
constexpr std::size_t tar_magic_at = 257;

constexpr std::string_view array_advice =
    "the file looks like one JSON array: write one object a line, with jq -c '.[]'";
constexpr std::string_view spread_advice =
    "the file looks like an object spread over lines: write each on one line, with jq -c .";

/// The key before the first array of a line; empty where jq needs more than its name.
std::string_view key_of_array(std::string_view line) {
  static constexpr std::string_view plain =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789";
  const std::size_t end = line.substr(0, line.find('[')).rfind('"');
  if (end == std::string_view::npos || end == 0) return "";
  const std::size_t begin = line.rfind('"', end - 1) + 1;
  const std::string_view key = line.substr(begin, end - begin);
  const bool is_name = key.find_first_not_of(plain) == std::string_view::npos;
  return is_name && !key.starts_with('0') ? key : "";
}

std::string_view trimmed(std::string_view text) {
  const std::size_t begin = text.find_first_not_of(blanks);
  if (begin == std::string_view::npos) return "";
  return text.substr(begin, text.find_last_not_of(blanks) + 1 - begin);
}

/// Where the first value of `line` ends, an object; npos where it does not or is none.
std::size_t end_of_object(std::string_view line) {
  JsonBrackets brackets;
  for (std::size_t i = 0; i < line.size(); ++i) {
    brackets.add(line[i]);
    if (line[i] == '}' && brackets.depth() <= 0 && !brackets.in_string()) return i + 1;
  }
  return std::string_view::npos;
}

}  // namespace

std::string problem_of_file(std::string_view start) {
  if (const std::string_view encoding = wide_encoding(start); !encoding.empty()) {
    return fmt::format(
        "the file is {0} text, must be UTF-8; convert it, with iconv -f {0} -t UTF-8", encoding);
  }
  for (const Magic& magic : magics) {
    if (start.starts_with(magic.bytes)) return fmt::format("the file {}", magic.problem);
  }
  if (start.size() > tar_magic_at && start.substr(tar_magic_at).starts_with("ustar"sv)) {
    return "the file is a tar archive; unpack it first";
  }
  return "";
}

void FileForm::add(std::string_view whole_line) {
  const std::string_view line = trimmed(whole_line);
  JsonBrackets brackets;
  for (const char c : line) brackets.add(c);
  const bool is_first = lines_++ == 0;
  if (is_first && !brackets.in_string() && brackets.depth() > 0) opening_ = line.front();
  if (opening_ != '\0') {
    depth_ += brackets.depth();
    if (key_.empty() && brackets.depth() > 0) key_ = key_of_array(line);
    if (depth_ <= 0) is_closed_ = true;
  }
  if (brackets.in_string() || brackets.depth() != 0) return;
  if ((line.starts_with('{') && line.ends_with(',')) || line.starts_with(',')) {
    ++elements_;
  } else if (line.starts_with('{')) {
    ++objects_;
  }
  if (opening_ == '{' && depth_ > 0 && line.starts_with('{')) has_inner_ = true;
}

std::string FileForm::problem() const {
  // The last element has no comma after it. More objects without: they are lines, and one beside
  // them is broken.
  const bool separated = objects_ <= elements_ + 1;
  if (opening_ == '[' && separated) return std::string(array_advice);
  if (opening_ == '{' && separated && (is_closed_ || elements_ > 0)) {
    if (!has_inner_) return std::string(spread_advice);
    return fmt::format(
        "the file looks like one object around all requests: write one object a "
        "line, with jq -c '.{}[]'",
        key_);
  }
  if (lines_ > 1 && (2 * elements_ > lines_ || elements_ + 1 == lines_)) {
    return "the file looks like a list, with commas between its objects: write one object a line, "
           "with sed 's/^,//; s/,\\r*$//'";
  }
  return "";
}

std::string advice_for_file(std::string_view first_line) {
  const std::string_view line = trimmed(first_line);
  if (line.empty()) return "";
  if (line.starts_with('[')) return std::string(array_advice);
  if (line.starts_with("{'")) {
    return "this looks like Python's own notation: write lines with json.dumps";
  }
  const bool goes_on =
      line.ends_with('{') || line.ends_with('[') || (line.ends_with(',') && !line.ends_with("},"));
  if (line.starts_with('{') && goes_on) return std::string(spread_advice);
  if (line.starts_with('{')) return "";
  if (line.starts_with('\x1e')) {
    return "this looks like a JSON text sequence: remove the separators, with tr -d '\\036'";
  }
  if (line.starts_with("\"{")) {
    return "each line looks like a string that holds JSON: write what it holds, with jq -r .";
  }
  return "a table or plain text is no input: write one JSON object a line, such as "
         "{\"id\": \"a\", \"prompt\": \"Hello\"}";
}

std::string several_objects(std::string_view line) {
  const std::size_t end = end_of_object(line);
  if (end == std::string_view::npos) return "";
  const std::size_t next = line.find_first_not_of(blanks, end);
  if (next == std::string_view::npos || line[next] != '{') return "";
  if (line.substr(end, next - end).find('\r') == std::string_view::npos) {
    return "several objects are on one line; write one object a line, with jq -c .";
  }
  return "lines end with a carriage return alone; end them with a line feed, with tr '\\r' '\\n'";
}

std::string not_utf8(std::string_view line) {
  for (std::size_t i = 0; i < line.size();) {
    const int length = utf8_sequence(line.substr(i));
    if (length < 0) {
      return fmt::format(
          "it is not UTF-8 (byte {:#04x}); convert the file, where it is Latin-1 with "
          "iconv -f LATIN1 -t UTF-8",
          static_cast<unsigned char>(line[i]));
    }
    i += static_cast<std::size_t>(length);
  }
  return "";
}

std::string id_in(std::string_view line, std::string_view key) {
  std::size_t i = line.find_first_not_of(blanks);
  if (i == std::string_view::npos || line[i] != '{') return "";
  int depth = 0;
  bool is_next = false;  // the value of `key`
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
    is_next = depth == 1 && text.substr(1, text.size() - 2) == key &&
              after != std::string_view::npos && line[after] == ':';
    i = end;
  }
  return "";
}

}  // namespace atl::io
