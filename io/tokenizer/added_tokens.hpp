#pragma once
// Added tokens in text: special ones such as <|im_end|>, and others that a vocabulary got later.

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "io/tokenizer/spec.hpp"

namespace atl::io {

/// A stretch of text: an added token, or text between them.
struct Stretch {
  std::size_t begin = 0;
  std::size_t end = 0;
  TokenId token = -1;  ///< -1: none
};

/// Finds tokens in text, the first that begins and of these the longest, as Hugging Face does.
class AddedTokenFinder {
 public:
  /// Looks for token.content; those with empty contents are never found.
  explicit AddedTokenFinder(const std::vector<AddedToken>& tokens);

  /// The stretches of `text` in order; none for an empty text.
  void find(std::string_view text, std::vector<Stretch>& stretches) const;

 private:
  std::size_t longest_at(std::string_view text, std::size_t at, const AddedToken*& found) const;

  std::vector<AddedToken> tokens_;
  // A tree of their bytes: node 0 is the root, `next_` knows (node, byte), `token_of_` where they
  // end.
  std::array<std::int32_t, 256> first_{};
  std::unordered_map<std::uint64_t, std::int32_t> next_;
  std::vector<std::int32_t> token_of_;
};

}  // namespace atl::io
