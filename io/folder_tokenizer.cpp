// Which file of a folder is the tokenizer, and what other files say about it.

#include "io/folder_tokenizer.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <span>

#include "compute/error.hpp"
#include "io/json_text.hpp"
#include "io/tokenizer/encoder.hpp"
#include "io/tokenizer/import.hpp"
#include "io/utf8.hpp"

namespace atl::io {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr const char* config_name = "tokenizer_config.json";
constexpr const char* template_name = "chat_template.jinja";

bool has(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

/// The bytes of a file of the folder, which is noted as a source.
std::string take_file(const fs::path& path, TokenizerSpec& spec) {
  std::ifstream file(path, std::ios::binary);
  std::string bytes{std::istreambuf_iterator<char>(file), {}};
  require(file.good() || file.eof(), "cannot be read");
  spec.sources.push_back({path.filename().string(), checksum_of(std::as_bytes(std::span(bytes)))});
  return bytes;
}

/// A special token as tokenizer_config.json has it: a text, or an object around one.
std::string token_text(const Json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_object() && value.contains("content") && value["content"].is_string()) {
    return value["content"].get<std::string>();
  }
  return "";
}

/// The template by that name, or the only one.
std::string template_of(const Json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (!value.is_array()) return "";
  for (const Json& item : value) {
    if (item.is_object() && item.value("name", Json()) == "default") {
      return token_text({{"content", item.value("template", Json())}});
    }
  }
  return "";
}

void read_added(const Json& decoder, TokenizerConfig& config) {
  if (!decoder.is_object()) return;
  for (const auto& [key, value] : decoder.items()) {
    const bool is_id =
        !key.empty() && key.size() < 9 && key.find_first_not_of("0123456789") == std::string::npos;
    if (!is_id) continue;
    AddedToken token;
    token.id = std::stoi(key);
    token.content = token_text(value);
    if (!token.content.empty()) config.added.push_back(std::move(token));
  }
}

std::optional<bool> flag(const Json& json, const char* key) {
  if (!json.contains(key) || !json[key].is_boolean()) return std::nullopt;
  return json[key].get<bool>();
}

TokenizerConfig read_config(const fs::path& folder, TokenizerSpec& spec) {
  TokenizerConfig config;
  if (has(folder / config_name)) {
    const Json json = parse_json_object(take_file(folder / config_name, spec), "cannot be read");
    if (json.contains("tokenizer_class")) {
      config.tokenizer_class = token_text(json["tokenizer_class"]);
    }
    config.add_bos = flag(json, "add_bos_token");
    config.add_eos = flag(json, "add_eos_token");
    for (const char* key : {"bos_token", "eos_token", "pad_token", "unk_token"}) {
      const std::string text = json.contains(key) ? token_text(json[key]) : "";
      if (!text.empty()) config.special_tokens[key] = text;
    }
    if (json.contains("added_tokens_decoder")) read_added(json["added_tokens_decoder"], config);
    if (json.contains("chat_template")) spec.chat_template = template_of(json["chat_template"]);
  }
  // As in transformers, the file of its own comes first.
  if (has(folder / template_name)) spec.chat_template = take_file(folder / template_name, spec);
  spec.chat_template = mended_utf8(spec.chat_template);
  return config;
}

/// BOS or EOS as tokenizer_config.json wants them, which in transformers has the last word.
void set_end(std::optional<bool> wanted, const char* key, const TokenizerConfig& config,
             TokenizerSpec& spec, std::vector<TokenId>& ids) {
  const auto text = config.special_tokens.find(key);
  if (!wanted.has_value() || text == config.special_tokens.end()) return;
  const auto token = std::ranges::find(spec.added, text->second, &AddedToken::content);
  if (token == spec.added.end()) return;
  if (*wanted && std::ranges::find(ids, token->id) == ids.end()) ids.push_back(token->id);
  if (!*wanted) std::erase(ids, token->id);
}

/// What every byte-level tokenizer that has these bytes must get right: they come back as they
/// were.
constexpr const char* trial_texts[] = {
    "Hello, world! It's 12345 and 3.14\r\n\tx = y[0];  // done\n\n\n",
    "\xc3\xa9t\xc3\xa9 na\xc3\xafve \xe4\xb8\xad\xe6\x96\x87\xe5\xad\x97\xe7\xac\xa6 "
    "\xd0\xbf\xd1\x80\xd0\xb8\xd0\xb2\xd0\xb5\xd1\x82 \xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x92\xbb",
    "     a  b   c\xc2\xa0\xe2\x80\x83 d\x01\x7f"};

void try_out(const TokenizerSpec& spec) {
  const Tokenizer tokenizer(spec);
  const PieceTable pieces(spec);
  const auto has_byte = [&](char c) { return pieces.find({&c, 1}) >= 0; };
  EncodeMemory memory;
  for (const char* text : trial_texts) {
    const std::vector<TokenId> ids = tokenizer.encode(text, /*add_special=*/false, memory);
    const std::string back = tokenizer.decode(ids, {.special_tokens = true});
    // These may change a text.
    if (!spec.byte_level || !spec.normal.empty()) continue;
    if (!std::ranges::all_of(std::string_view(text), has_byte)) continue;
    const bool prefixed = !spec.cuts.empty() && spec.cuts[0].kind == CutStep::Kind::prepend;
    require(back == (prefixed ? spec.cuts[0].to : "") + text,
            "it does not give back a text that it encoded");
  }
}

TokenizerSpec compiled(const std::string& name, std::string_view text,
                       const TokenizerConfig& config) {
  if (name == "tokenizer.json") return tokenizer_from_json(text);
  if (name == "tiktoken.model") return tokenizer_from_tiktoken(text, config);
  if (name == "tekken.json") return tokenizer_from_tekken(text);
  fail("a SentencePiece model is not supported; save tokenizer.json with transformers");
}

}  // namespace

std::optional<TokenizerSpec> tokenizer_of_folder(const std::string& folder) {
  const fs::path base(folder);
  for (const std::string name :
       {"tokenizer.json", "tiktoken.model", "tekken.json", "tokenizer.model"}) {
    if (!has(base / name)) continue;
    TokenizerSpec spec;
    std::string at = name;
    try {
      const std::string text = take_file(base / name, spec);
      at = config_name;
      const TokenizerConfig config = read_config(base, spec);
      at = name;
      TokenizerSpec found = compiled(name, text, config);
      found.sources = spec.sources;
      found.chat_template = spec.chat_template;
      found.special_tokens = config.special_tokens;
      set_end(config.add_bos, "bos_token", config, found, found.prefix);
      set_end(config.add_eos, "eos_token", config, found, found.suffix);
      try_out(found);
      return found;
    } catch (const Error& error) {
      spec.unsupported = fmt::format("{}: {}", at, error.what());
      return spec;
    }
  }
  return std::nullopt;
}

std::string description_of(const TokenizerSpec& spec) {
  std::vector<std::string> sources;
  for (const TokenizerSource& source : spec.sources) {
    sources.push_back(fmt::format("{} ({:016x})", source.file, source.hash));
  }
  const std::string from = fmt::format("from {}", fmt::join(sources, ", "));
  if (!spec.unsupported.empty())
    return fmt::format("not supported ({}), {}", spec.unsupported, from);
  return fmt::format("{} pieces of {}, {} merges, {} added tokens, {}, {}", spec.num_pieces(),
                     spec.byte_level ? "bytes" : "characters", spec.merges.size() / 3,
                     spec.added.size(),
                     spec.chat_template.empty()
                         ? "no chat template"
                         : fmt::format("a chat template of {} bytes", spec.chat_template.size()),
                     from);
}

}  // namespace atl::io
