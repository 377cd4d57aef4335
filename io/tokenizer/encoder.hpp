#pragma once
// Text to ids and back, by a compiled tokenizer.

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/tokenizer/added_tokens.hpp"
#include "io/tokenizer/bpe.hpp"
#include "io/tokenizer/cutter.hpp"
#include "io/tokenizer/decoder.hpp"
#include "io/tokenizer/regex.hpp"
#include "io/tokenizer/spec.hpp"

namespace atl::io {

/// What a thread needs to encode, and keeps from one text to the next.
class EncodeMemory {
 private:
  friend class Tokenizer;
  RegexMemory regex_;
  BpeMemory bpe_;
  std::vector<Stretch> raw_;
  std::vector<Stretch> normal_;
  std::vector<Piece> pieces_;
};

/// Any number of threads may use one, each with memory of its own.
class Tokenizer {
 public:
  /// Throws Error where `spec` is not supported, or a pattern of it not valid.
  explicit Tokenizer(TokenizerSpec spec);

  /// The ids of `text` as Hugging Face's library gives them; with `add_special` also those of the
  /// template (BOS, EOS), but never one that the text has there already. Throws Error when the text
  /// is not UTF-8 or a pattern's search takes too much.
  std::vector<TokenId> encode(std::string_view text, bool add_special, EncodeMemory& memory) const;
  std::string decode(std::span<const TokenId> ids, const DecodeOptions& options) const {
    return decoder_.decode(ids, options);
  }
  std::string bytes_of(TokenId id, bool special_tokens) const {
    return decoder_.bytes_of(id, special_tokens);
  }
  const TokenizerSpec& spec() const { return *spec_; }

 private:
  void encode_normal(std::string_view text, bool is_start, std::vector<TokenId>& ids,
                     EncodeMemory& memory) const;
  void add_template(std::vector<TokenId>& ids) const;

  std::shared_ptr<const TokenizerSpec> spec_;  // where it is, whatever becomes of this
  AddedTokenFinder raw_tokens_;
  AddedTokenFinder normal_tokens_;
  Cutter cutter_;
  Bpe bpe_;
  TokenDecoder decoder_;
};

}  // namespace atl::io
