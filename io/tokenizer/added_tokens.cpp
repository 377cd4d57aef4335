#include "io/tokenizer/added_tokens.hpp"

#include <algorithm>

#include "io/tokenizer/normalizer.hpp"

namespace atl::io {
namespace {

std::uint64_t edge(std::int32_t node, unsigned char byte) {
  return static_cast<std::uint64_t>(node) << 8 | byte;
}

}  // namespace

AddedTokenFinder::AddedTokenFinder(const std::vector<AddedToken>& tokens) : tokens_(tokens) {
  token_of_.push_back(-1);
  for (std::size_t t = 0; t < tokens_.size(); ++t) {
    std::int32_t node = 0;
    for (const char c : tokens_[t].content) {
      const auto byte = static_cast<unsigned char>(c);
      const auto fresh = static_cast<std::int32_t>(token_of_.size());
      std::int32_t& next =
          node == 0 ? first_[byte] : next_.try_emplace(edge(node, byte), 0).first->second;
      if (next == 0) {
        next = fresh;
        token_of_.push_back(-1);
      }
      node = next;
    }
    if (node != 0 && token_of_[static_cast<std::size_t>(node)] < 0) {
      token_of_[static_cast<std::size_t>(node)] = static_cast<std::int32_t>(t);
    }
  }
}

/// Length of the longest token at `at`; 0 for none.
std::size_t AddedTokenFinder::longest_at(std::string_view text, std::size_t at,
                                         const AddedToken*& found) const {
  std::size_t length = 0;
  std::int32_t node = first_[static_cast<unsigned char>(text[at])];
  for (std::size_t i = at + 1; node != 0; ++i) {
    if (const std::int32_t token = token_of_[static_cast<std::size_t>(node)]; token >= 0) {
      found = &tokens_[static_cast<std::size_t>(token)];
      length = i - at;
    }
    if (i == text.size()) break;
    const auto next = next_.find(edge(node, static_cast<unsigned char>(text[i])));
    if (next == next_.end()) break;
    node = next->second;
  }
  return length;
}

void AddedTokenFinder::find(std::string_view text, std::vector<Stretch>& stretches) const {
  stretches.clear();
  std::size_t covered = 0;  // up to here all is in a stretch
  for (std::size_t at = 0; at < text.size();) {
    if (first_[static_cast<unsigned char>(text[at])] == 0) {
      ++at;
      continue;
    }
    const AddedToken* token = nullptr;
    const std::size_t length = longest_at(text, at, token);
    if (length == 0) {
      ++at;
      continue;
    }
    std::size_t begin = at;
    std::size_t end = at + length;
    at = end;  // the space that a token takes after itself may begin another all the same
    if (token->lstrip) {
      while (begin > covered) {
        const std::size_t space = space_at_end(text.substr(covered, begin - covered));
        if (space == 0) break;
        begin -= space;
      }
    }
    if (token->rstrip) {
      while (const std::size_t space = space_at_start(text.substr(end))) end += space;
    }
    if (covered < begin) stretches.push_back({covered, begin, -1});
    stretches.push_back({begin, end, token->id});
    covered = end;
  }
  if (covered < text.size()) stretches.push_back({covered, text.size(), -1});
}

}  // namespace atl::io
