#include "app/run/tokenize.hpp"

#include <fmt/format.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "app/model/checked_config.hpp"
#include "compute/error.hpp"
#include "io/folder_tokenizer.hpp"
#include "io/json_shown.hpp"
#include "io/model_file.hpp"
#include "io/model_text.hpp"
#include "io/utf8.hpp"

namespace atl {
namespace {

using Json = nlohmann::json;

bool is_folder(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::is_directory(path, ignored);
}

io::TokenizerSpec spec_of_folder(const std::string& path) {
  auto spec = io::tokenizer_of_folder(path);
  require(spec.has_value(),
          "{} has no tokenizer.json, tiktoken.model or tekken.json; give a model file, or a "
          "folder with one of these",
          path);
  return std::move(*spec);
}

/// What jobs/chat.py needs.
void print_chat_template(const std::string& path) {
  io::TokenizerSpec spec;
  if (is_folder(path)) {
    spec = spec_of_folder(path);
  } else {
    const auto attachments = io::ModelFileReader(path).attachments();
    require(!attachments.empty(), "{} has no tokenizer, and so no chat template", path);
    spec = io::from_attachments(attachments);
  }
  fmt::print("{}\n", io::json_text(Json({{"chat_template", spec.chat_template},
                                         {"special_tokens", spec.special_tokens}})));
}

io::ModelText text_of(const std::string& path) {
  if (is_folder(path)) return io::ModelText(spec_of_folder(path));
  const io::ModelFileReader reader(path);
  return {reader, checked_config(reader).shape.vocab, /*encodes=*/true};
}

std::string read_input(const std::string& path) {
  if (path == "-") return {std::istreambuf_iterator<char>(std::cin), {}};
  std::error_code ignored;
  std::ifstream file(path, std::ios::binary);
  if (!file || std::filesystem::is_directory(path, ignored)) {
    fail("cannot read {}: {}; check --input", path, file ? "it is a folder" : std::strerror(errno));
  }
  return {std::istreambuf_iterator<char>(file), {}};
}

class Tokenize {
 public:
  explicit Tokenize(const TokenizeOptions& options)
      : options_(options), text_(text_of(options.model)) {
    require(text_.why_not().empty(), "{}: {}", options.model, text_.why_not());
  }

  void run() {
    const std::string input = read_input(options_.input);
    if (!options_.json_lines) return convert(input);
    std::int64_t number = 0;
    for (std::size_t begin = 0; begin < input.size(); ++number) {
      const std::size_t end = std::min(input.find('\n', begin), input.size());
      try {
        convert_line(std::string_view(input).substr(begin, end - begin));
      } catch (const Error& error) {
        fail("line {} of the input: {}", number + 1, error.what());
      }
      begin = end + 1;
    }
  }

 private:
  void convert_line(std::string_view line) {
    const Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (options_.detokenize) return fmt::print("{}\n", io::json_text(Json(decoded(json))));
    require(json.is_string(), "it is no JSON string; write one a line");
    encode(json.get<std::string>());
  }

  void convert(const std::string& input) {
    if (!options_.detokenize) return encode(input);
    const Json ids = Json::parse(input, nullptr, /*allow_exceptions=*/false);
    fmt::print("{}", decoded(ids));
  }

  void encode(std::string_view text) {
    const auto ids = text_.encode(text, !options_.no_special_tokens, memory_);
    if (!options_.pieces) return fmt::print("[{}]\n", fmt::join(ids, ","));
    for (const std::int32_t id : ids) {
      fmt::print(
          "{}\t{}\n", id,
          io::json_text(Json(text_.decode({&id, 1}, {.special_tokens = true, .continues = true}))));
    }
  }

  std::string decoded(const Json& json) const {
    std::vector<std::int32_t> ids;
    require(json.is_array(), "it is no JSON list of token ids, such as [1, 2, 3]");
    for (const Json& id : json) {
      require(id.is_number_unsigned() && id.get<std::uint64_t>() < io::max_token_ids,
              "{} is no token id", io::shown(id));
      ids.push_back(id.get<std::int32_t>());
    }
    return text_.decode(ids, {.special_tokens = !options_.no_special_tokens});
  }

  const TokenizeOptions& options_;
  io::ModelText text_;
  io::EncodeMemory memory_;
};

}  // namespace

void tokenize(const TokenizeOptions& options) {
  if (options.chat_template) {
    print_chat_template(options.model);
  } else {
    Tokenize(options).run();
  }
  require(std::fflush(stdout) == 0, "cannot write to standard output");
}

}  // namespace atl
