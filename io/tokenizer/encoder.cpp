#include "io/tokenizer/encoder.hpp"

#include <algorithm>

#include "compute/error.hpp"
#include "io/tokenizer/normalizer.hpp"
#include "io/utf8.hpp"

namespace atl::io {
namespace {

/// The added tokens that are looked for in normalised text, or those in the text as it is.
std::vector<AddedToken> tokens_in(const TokenizerSpec& spec, bool normal) {
  std::vector<AddedToken> tokens;
  for (const AddedToken& token : spec.added) {
    if (token.normalized != normal) continue;
    tokens.push_back(token);
    if (normal) tokens.back().content = normalized(token.content, spec.normal);
  }
  return tokens;
}

TokenizerSpec supported(TokenizerSpec spec) {
  require(spec.unsupported.empty(), "{}", spec.unsupported);
  return spec;
}

}  // namespace

Tokenizer::Tokenizer(TokenizerSpec spec)
    : spec_(std::make_shared<const TokenizerSpec>(supported(std::move(spec)))),
      raw_tokens_(tokens_in(*spec_, false)),
      normal_tokens_(tokens_in(*spec_, true)),
      cutter_(spec_->cuts),
      bpe_(*spec_),
      decoder_(*spec_) {}

std::vector<TokenId> Tokenizer::encode(std::string_view text, bool add_special,
                                       EncodeMemory& memory) const {
  require(is_utf8(text), "the text is not UTF-8");
  std::vector<TokenId> ids;
  raw_tokens_.find(text, memory.raw_);
  for (const Stretch& stretch : memory.raw_) {
    if (stretch.token >= 0) {
      ids.push_back(stretch.token);
      continue;
    }
    const std::string normal =
        normalized(text.substr(stretch.begin, stretch.end - stretch.begin), spec_->normal);
    encode_normal(normal, stretch.begin == 0, ids, memory);
  }
  if (add_special) add_template(ids);
  return ids;
}

void Tokenizer::encode_normal(std::string_view text, bool is_start, std::vector<TokenId>& ids,
                              EncodeMemory& memory) const {
  normal_tokens_.find(text, memory.normal_);
  for (const Stretch& stretch : memory.normal_) {
    if (stretch.token >= 0) {
      ids.push_back(stretch.token);
      continue;
    }
    std::string part(text.substr(stretch.begin, stretch.end - stretch.begin));
    cutter_.cut(part, is_start && stretch.begin == 0, memory.pieces_, memory.regex_);
    for (const Piece& piece : memory.pieces_) {
      bpe_.encode(std::string_view(part).substr(piece.begin, piece.end - piece.begin), ids,
                  memory.bpe_);
    }
  }
}

void Tokenizer::add_template(std::vector<TokenId>& ids) const {
  const std::vector<TokenId>& prefix = spec_->prefix;
  const std::vector<TokenId>& suffix = spec_->suffix;
  const bool begins = ids.size() >= prefix.size() &&
                      std::ranges::equal(prefix, std::span(ids).first(prefix.size()));
  if (!begins) ids.insert(ids.begin(), prefix.begin(), prefix.end());
  const bool ends =
      ids.size() >= suffix.size() && std::ranges::equal(suffix, std::span(ids).last(suffix.size()));
  if (!ends) ids.insert(ids.end(), suffix.begin(), suffix.end());
}

}  // namespace atl::io
