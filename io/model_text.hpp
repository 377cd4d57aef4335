#pragma once
// How a model's tokens are text: by the tokenizer in its file, as bytes, or not at all.

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/tokenizer/encoder.hpp"

namespace atl::io {

class ModelFileReader;

class ModelText {
 public:
  /// Without a tokenizer: ids are bytes where the vocabulary has 256, else there is no text.
  explicit ModelText(int vocab);
  /// Of a model file. Only with `encodes` does it take the time and memory that encoding needs.
  /// Throws Error when the file is damaged. A tokenizer that is not supported is no text.
  ModelText(const ModelFileReader& file, int vocab, bool encodes);
  /// By a tokenizer that stands in no model file.
  explicit ModelText(TokenizerSpec spec);

  /// Why there is no text, and what to do; empty where there is.
  const std::string& why_not() const { return why_not_; }

  /// The ids of a prompt. Any number of threads at once, each with its own memory. Throws Error: no
  /// text with this model, or the text cannot be encoded.
  std::vector<TokenId> encode(std::string_view text, bool add_special, EncodeMemory& memory) const;
  /// The text of `ids`, as a whole. There must be text.
  std::string decode(std::span<const TokenId> ids, const DecodeOptions& options) const;
  /// What one id gives to a text that goes on: its bytes, which need not be UTF-8. There must be
  /// text.
  std::string bytes_of(TokenId id, bool special_tokens) const;

 private:
  std::string why_not_;
  bool bytes_ = false;
  std::unique_ptr<const Tokenizer> tokenizer_;
  std::unique_ptr<const TokenizerSpec> spec_;  // of decoder_, where there is no tokenizer_
  std::unique_ptr<const TokenDecoder> decoder_;
};

}  // namespace atl::io
