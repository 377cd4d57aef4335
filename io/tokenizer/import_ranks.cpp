// Vocabularies of ranks: tiktoken.model and tekken.json.

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <nlohmann/json.hpp>

#include "compute/error.hpp"
#include "io/json_shown.hpp"
#include "io/json_text.hpp"
#include "io/tokenizer/bpe.hpp"
#include "io/tokenizer/import.hpp"
#include "io/tokenizer/regex.hpp"

namespace atl::io {
namespace {

using Json = nlohmann::json;

// Kimi's tokenizer has its pattern and the number of its special tokens in Python code.
constexpr std::string_view kimi_class = "TikTokenTokenizer";
constexpr std::string_view kimi_pattern =
    R"([\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*)"
    R"([\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+)"
    R"([\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
    R"(\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr TokenId kimi_special_tokens = 256;

// The special tokens of tekken files that do not list them; the numbers up to the config's count
// are <SPECIAL_n>.
constexpr std::array tekken_special_tokens = {"<unk>",
                                              "<s>",
                                              "</s>",
                                              "[INST]",
                                              "[/INST]",
                                              "[AVAILABLE_TOOLS]",
                                              "[/AVAILABLE_TOOLS]",
                                              "[TOOL_RESULTS]",
                                              "[/TOOL_RESULTS]",
                                              "[TOOL_CALLS]",
                                              "[IMG]",
                                              "<pad>",
                                              "[IMG_BREAK]",
                                              "[IMG_END]",
                                              "[PREFIX]",
                                              "[MIDDLE]",
                                              "[SUFFIX]",
                                              "[SYSTEM_PROMPT]",
                                              "[/SYSTEM_PROMPT]",
                                              "[TOOL_CONTENT]"};
constexpr std::string_view tekken_bos = "<s>";

/// What both kinds have in common: bytes, whole pieces before merges, one pattern.
TokenizerSpec spec_of_ranks(std::string_view pattern) {
  TokenizerSpec spec;
  spec.byte_level = true;
  spec.ignore_merges = true;
  CutStep cut;
  cut.pattern = to_pcre2(pattern, RegexDialect::rust);
  spec.cuts.push_back(cut);
  return spec;
}

void add_special(TokenizerSpec& spec, TokenId id, std::string content) {
  AddedToken token;
  token.id = id;
  token.content = std::move(content);
  token.special = true;
  spec.added.push_back(std::move(token));
}

void set_piece(std::vector<std::string>& pieces, TokenId id, std::string piece) {
  const auto place = static_cast<std::size_t>(id);
  if (place >= pieces.size()) pieces.resize(place + 1);
  require(pieces[place].empty(), "its vocabulary has the id {} twice", id);
  require(!piece.empty(), "its piece {} is empty", id);
  pieces[place] = std::move(piece);
}

TokenId small_number(const Json& json, const char* key) {
  require(json.is_object() && json.contains(key) && json[key].is_number_unsigned() &&
              json[key].get<std::uint64_t>() < max_token_ids,
          "its \"{}\" is missing or no integer below {}", key, max_token_ids);
  return json[key].get<TokenId>();
}

std::string text_member(const Json& json, const char* key) {
  require(json.is_object() && json.contains(key) && json[key].is_string(),
          "\"{}\" is missing or no string", key);
  return json[key].get<std::string>();
}

void add_tekken_special_tokens(const Json& json, TokenId count, TokenizerSpec& spec) {
  std::vector<std::string> contents(static_cast<std::size_t>(count));
  for (TokenId id = 0; id < count; ++id) {
    const auto place = static_cast<std::size_t>(id);
    contents[place] = fmt::format("<SPECIAL_{}>", id);
    if (!json.contains("special_tokens") && place < tekken_special_tokens.size()) {
      contents[place] = tekken_special_tokens[place];
    }
  }
  if (json.contains("special_tokens")) {
    for (const Json& token : json["special_tokens"]) {
      const TokenId id = small_number(token, "rank");
      require(id < count, "its special token {} is not below {}", id, count);
      contents[static_cast<std::size_t>(id)] = text_member(token, "token_str");
    }
  }
  for (TokenId id = 0; id < count; ++id) {
    const std::string& content = contents[static_cast<std::size_t>(id)];
    if (content == tekken_bos) spec.prefix = {id};
    add_special(spec, id, content);
  }
}

}  // namespace

std::string from_base64(std::string_view text) {
  constexpr std::string_view digits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  require(text.size() % 4 == 0, "{} is not base64", shown(Json(text)));
  std::string bytes;
  while (text.ends_with('=')) text.remove_suffix(1);
  std::uint32_t bits = 0;
  int count = 0;
  for (const char c : text) {
    const std::size_t digit = digits.find(c);
    require(digit != std::string_view::npos, "{} is not base64", shown(Json(text)));
    bits = bits << 6 | static_cast<std::uint32_t>(digit);
    count += 6;
    if (count < 8) continue;
    count -= 8;
    bytes += static_cast<char>(bits >> count & 0xff);
  }
  return bytes;
}

void set_merges_of_ranks(TokenizerSpec& spec) {
  spec.merge_by_id = true;
  spec.merges.clear();
  const PieceTable pieces(spec);
  for (TokenId id = 0; id < spec.num_pieces(); ++id) {
    const std::string_view piece = spec.piece(id);
    for (std::size_t cut = 1; cut < piece.size(); ++cut) {
      const TokenId left = pieces.find(piece.substr(0, cut));
      const TokenId right = left < 0 ? -1 : pieces.find(piece.substr(cut));
      if (right < 0) continue;
      for (const TokenId part : {left, right, id}) {
        spec.merges.push_back(static_cast<std::uint32_t>(part));
      }
    }
  }
}

TokenizerSpec tokenizer_from_tiktoken(std::string_view text, const TokenizerConfig& config) {
  require(config.tokenizer_class == kimi_class,
          "ranks without a pattern are supported for Kimi's {} only, and tokenizer_config.json has "
          "tokenizer_class {}",
          kimi_class, shown(Json(config.tokenizer_class)));
  TokenizerSpec spec = spec_of_ranks(kimi_pattern);
  std::vector<std::string> pieces;
  while (!text.empty()) {
    const std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(text.size(), line.size() + 1));
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::size_t space = line.find(' ');
    TokenId id = -1;
    if (space != std::string_view::npos) {
      std::from_chars(line.data() + space + 1, line.data() + line.size(), id);
    }
    require(id >= 0 && id < max_token_ids, "{} is no rank", shown(Json(line)));
    set_piece(pieces, id, from_base64(line.substr(0, space)));
  }
  spec.set_pieces(pieces);
  set_merges_of_ranks(spec);
  const TokenId first = spec.num_pieces();
  for (TokenId id = first; id < first + kimi_special_tokens; ++id) {
    const auto named = std::ranges::find(config.added, id, &AddedToken::id);
    add_special(
        spec, id,
        named == config.added.end() ? fmt::format("<|reserved_token_{}|>", id) : named->content);
  }
  check_spec(spec);
  return spec;
}

TokenizerSpec tokenizer_from_tekken(std::string_view text) {
  const Json json = parse_json_object(text, "cannot be read");
  require(json.contains("config") && json.contains("vocab") && json["vocab"].is_array(),
          "it lacks \"config\" or a list \"vocab\"");
  const Json& config = json["config"];
  const TokenId num_special = small_number(config, "default_num_special_tokens");
  const TokenId num_ids = small_number(config, "default_vocab_size");
  require(num_special <= num_ids, "it has more special tokens than tokens");
  TokenizerSpec spec = spec_of_ranks(text_member(config, "pattern"));
  std::vector<std::string> pieces;
  for (const Json& item : json["vocab"]) {
    const TokenId rank = small_number(item, "rank");
    if (rank >= num_ids - num_special) continue;  // the file has more than the models
    set_piece(pieces, num_special + rank, from_base64(text_member(item, "token_bytes")));
  }
  spec.set_pieces(pieces);
  set_merges_of_ranks(spec);
  add_tekken_special_tokens(json, num_special, spec);
  check_spec(spec);
  return spec;
}

}  // namespace atl::io
