#include "io/tokenizer/decoder.hpp"

#include <algorithm>
#include <cstdlib>

#include "io/tokenizer/byte_alphabet.hpp"
#include "io/tokenizer/normalizer.hpp"
#include "io/utf8.hpp"

namespace atl::io {
namespace {

/// The byte that a token <0x00> to <0xFF> stands for; -1 for others.
int fallback_byte(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return -1;
  int byte = 0;
  for (const char c : token.substr(3, 2)) {
    const bool digit = c >= '0' && c <= '9';
    const char low = static_cast<char>(c | 0x20);
    if (!digit && (low < 'a' || low > 'f')) return -1;
    byte = 16 * byte + (digit ? c - '0' : low - 'a' + 10);
  }
  return byte;
}

/// Neighbours that stand for bytes become their text: where they are not UTF-8 together, one U+FFFD
/// for each.
void join_fallback_bytes(std::vector<std::string>& tokens) {
  std::vector<std::string> result;
  std::string bytes;
  const auto flush = [&] {
    if (bytes.empty()) return;
    if (is_utf8(bytes)) {
      result.push_back(bytes);
    } else {
      result.insert(result.end(), bytes.size(), std::string(replacement_character));
    }
    bytes.clear();
  };
  for (std::string& token : tokens) {
    const int byte = fallback_byte(token);
    if (byte >= 0) {
      bytes += static_cast<char>(byte);
      continue;
    }
    flush();
    result.push_back(std::move(token));
  }
  flush();
  tokens = std::move(result);
}

std::string joined(const std::vector<std::string>& tokens) {
  std::string text;
  for (const std::string& token : tokens) text += token;
  return text;
}

void strip(const DecodeStep& step, bool keep_start, std::string& token) {
  for (int i = 0; !keep_start && i < step.start && token.starts_with(step.from); ++i) {
    token.erase(0, step.from.size());
  }
  for (int i = 0; i < step.stop && token.ends_with(step.from); ++i) {
    token.erase(token.size() - step.from.size());
  }
}

}  // namespace

/// As in Hugging Face's library, a token that is looked for in normalised text is that text on the
/// way back too, and then counts as special only where that is the same.
TokenDecoder::TokenDecoder(const TokenizerSpec& spec) : spec_(spec) {
  for (const AddedToken& token : spec.added) {
    const std::string text =
        token.normalized ? normalized(token.content, spec.normal) : token.content;
    added_[token.id] = {spec.byte_level ? bytes_of_alphabet(text).value_or(text) : text,
                        token.special && text == token.content};
  }
}

bool TokenDecoder::token_text(TokenId id, const DecodeOptions& options,
                              std::string_view& text) const {
  if (const auto added = added_.find(id); added != added_.end()) {
    text = added->second.text;
    return options.special_tokens || !added->second.special;
  }
  if (id < 0 || id >= spec_.num_pieces()) return false;
  text = spec_.piece(id);
  return true;
}

void TokenDecoder::apply(const DecodeStep& step, const DecodeOptions& options,
                         std::vector<std::string>& tokens) const {
  switch (step.kind) {
    case DecodeStep::Kind::replace:
      for (std::string& token : tokens) replace_all(token, step.from, step.to);
      return;
    case DecodeStep::Kind::byte_fallback:
      return join_fallback_bytes(tokens);
    case DecodeStep::Kind::fuse:
      tokens = {joined(tokens)};
      return;
    case DecodeStep::Kind::strip:
      for (std::string& token : tokens) strip(step, options.continues, token);
      return;
    case DecodeStep::Kind::metaspace:
      for (std::size_t t = 0; t < tokens.size(); ++t) {
        const bool drops = t == 0 && step.drop_first && !options.continues;
        replace_all(tokens[t], step.from, drops ? "" : " ");
      }
      return;
  }
}

std::string TokenDecoder::bytes_of(TokenId id, bool special_tokens) const {
  const DecodeOptions options{special_tokens, /*continues=*/true};
  std::string_view text;
  if (!token_text(id, options, text)) return "";
  std::vector<std::string> tokens = {std::string(text)};
  if (spec_.byte_level) return tokens[0];
  for (const DecodeStep& step : spec_.decode) {
    const int byte = fallback_byte(tokens[0]);
    if (step.kind == DecodeStep::Kind::byte_fallback && byte >= 0) {
      return std::string(1, static_cast<char>(byte));
    }
    if (step.kind == DecodeStep::Kind::replace || step.kind == DecodeStep::Kind::metaspace) {
      apply(step, options, tokens);
    }
  }
  return tokens[0];
}

std::string TokenDecoder::decode(std::span<const TokenId> ids, const DecodeOptions& options) const {
  if (spec_.byte_level) {  // nothing comes between the pieces and their bytes
    std::string bytes;
    for (const TokenId id : ids) {
      std::string_view text;
      if (token_text(id, options, text)) bytes += text;
    }
    return mended_utf8(bytes);
  }
  std::vector<std::string> tokens;
  for (const TokenId id : ids) {
    std::string_view text;
    if (token_text(id, options, text)) tokens.emplace_back(text);
  }
  for (const DecodeStep& step : spec_.decode) apply(step, options, tokens);
  return joined(tokens);
}

}  // namespace atl::io
