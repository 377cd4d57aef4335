#include "io/model_text.hpp"

#include <fmt/format.h>

#include "compute/error.hpp"
#include "io/model_file.hpp"
#include "io/utf8.hpp"

namespace atl::io {
namespace {

constexpr int byte_vocab = 256;
constexpr const char* advice = "give \"tokens\" (jobs/tokenize.py makes them from prompts)";

}  // namespace

ModelText::ModelText(int vocab) : bytes_(vocab == byte_vocab) {
  if (bytes_) return;
  why_not_ = fmt::format(
      "the model has {} token ids and no tokenizer (without one ids are bytes, for {}); {}", vocab,
      byte_vocab, advice);
}

ModelText::ModelText(TokenizerSpec spec)
    : tokenizer_(std::make_unique<Tokenizer>(std::move(spec))) {}

ModelText::ModelText(const ModelFileReader& file, int vocab, bool encodes) : ModelText(vocab) {
  const std::vector<Attachment> attachments = file.attachments();
  if (attachments.empty()) return;
  bytes_ = false;
  why_not_.clear();
  try {
    TokenizerSpec spec = from_attachments(attachments);
    if (!spec.unsupported.empty()) {
      why_not_ =
          fmt::format("the model's tokenizer is not supported ({}); {}", spec.unsupported, advice);
    } else if (encodes) {
      tokenizer_ = std::make_unique<Tokenizer>(std::move(spec));
    } else {
      spec.merges = {};
      spec_ = std::make_unique<TokenizerSpec>(std::move(spec));
      decoder_ = std::make_unique<TokenDecoder>(*spec_);
    }
  } catch (const Error& error) {
    fail("cannot read the tokenizer of {}: {}", file.path(), error.what());
  }
}

std::vector<TokenId> ModelText::encode(std::string_view text, bool add_special,
                                       EncodeMemory& memory) const {
  require(why_not_.empty(), "\"prompt\" needs a tokenizer: {}", why_not_);
  if (tokenizer_) return tokenizer_->encode(text, add_special, memory);
  require(bytes_, "this process was not set up to encode");
  std::vector<TokenId> ids;
  ids.reserve(text.size());
  for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
  return ids;
}

std::string ModelText::bytes_of(TokenId id, bool special_tokens) const {
  if (tokenizer_) return tokenizer_->bytes_of(id, special_tokens);
  if (decoder_) return decoder_->bytes_of(id, special_tokens);
  require(bytes_, "there is no text: {}", why_not_);
  return std::string(1, static_cast<char>(id >= 0 && id < byte_vocab ? id : 0xff));
}

std::string ModelText::decode(std::span<const TokenId> ids, const DecodeOptions& options) const {
  if (tokenizer_) return tokenizer_->decode(ids, options);
  if (decoder_) return decoder_->decode(ids, options);
  require(bytes_, "there is no text: {}", why_not_);
  std::string bytes;
  for (const TokenId id : ids) {
    // No byte is 0xff in UTF-8, so that an id that is none is mended like it.
    bytes += static_cast<char>(id >= 0 && id < byte_vocab ? id : 0xff);
  }
  return mended_utf8(bytes);
}

}  // namespace atl::io
