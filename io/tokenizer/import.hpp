#pragma once
// Tokenizers from elsewhere.

#include <map>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "io/tokenizer/spec.hpp"

namespace atl::io {

/// What is said of files besides that of the vocabulary: tokenizer_config.json and the chat
/// template.
struct TokenizerConfig {
  std::string tokenizer_class;
  std::optional<bool> add_bos;
  std::optional<bool> add_eos;
  std::map<std::string, std::string> special_tokens;  ///< bos_token, eos_token ...
  std::vector<AddedToken> added;                      ///< added_tokens_decoder
};

/// The compiled form of a tokenizer.json (Hugging Face tokenizers). Throws Error naming what is not
/// supported.
TokenizerSpec tokenizer_from_json(std::string_view text);
/// Of ranks as tiktoken writes them (base64 and number on each line), with Kimi's pattern and
/// special tokens: the files have neither.
TokenizerSpec tokenizer_from_tiktoken(std::string_view text, const TokenizerConfig& config);
/// Of a tekken.json (Mistral).
TokenizerSpec tokenizer_from_tekken(std::string_view text);

/// Steps of a tokenizer.json, for `spec`. Throw Error naming what is not supported. The last says
/// whether it is of bytes.
void read_normalizer(const nlohmann::json& json, TokenizerSpec& spec);
void read_pre_tokenizer(const nlohmann::json& json, TokenizerSpec& spec);
bool read_decoder(const nlohmann::json& json, TokenizerSpec& spec);

/// Gives `spec` the merges that a vocabulary of ranks means: a pair becomes whatever piece its
/// bytes are, the piece with the smallest id first.
void set_merges_of_ranks(TokenizerSpec& spec);

/// The bytes of a base64 text with padding. Throws Error where it is none.
std::string from_base64(std::string_view text);

}  // namespace atl::io
