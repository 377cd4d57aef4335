#pragma once
// From ids back to text.

#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "io/tokenizer/spec.hpp"

namespace atl::io {

struct DecodeOptions {
  bool special_tokens = false;  ///< keep special tokens in the text
  /// The text goes on after another: a space at its beginning stays, which decoders of
  /// SentencePiece's kind take off a text that stands by itself.
  bool continues = false;
};

class TokenDecoder {
 public:
  /// `spec` must outlive it.
  explicit TokenDecoder(const TokenizerSpec& spec);

  /// The text of `ids` as a whole, in UTF-8. Ids that the tokenizer does not have give nothing.
  std::string decode(std::span<const TokenId> ids, const DecodeOptions& options) const;
  /// What one token gives to a text that goes on: its bytes, which need not be whole characters.
  /// What decoders do over several tokens (but for joining bytes) is left out.
  std::string bytes_of(TokenId id, bool special_tokens) const;

 private:
  /// False: the token gives nothing.
  bool token_text(TokenId id, const DecodeOptions& options, std::string_view& text) const;
  void apply(const DecodeStep& step, const DecodeOptions& options,
             std::vector<std::string>& tokens) const;

  const TokenizerSpec& spec_;
  struct Added {
    std::string text;
    bool special = false;
  };
  std::unordered_map<TokenId, Added> added_;
};

}  // namespace atl::io
