#pragma once
// Byte-pair encoding of one piece of text.

#include <array>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "io/tokenizer/spec.hpp"

namespace atl::io {

/// Finds ids by the bytes of their pieces.
class PieceTable {
 public:
  /// Of the pieces of `spec`, which must outlive the table, but for the empty ones and those that
  /// nothing may give.
  explicit PieceTable(const TokenizerSpec& spec);
  /// -1 where there is no such piece.
  TokenId find(std::string_view piece) const;

 private:
  const TokenizerSpec& spec_;
  std::vector<TokenId> slots_;  // a power of two; -1 where free
};

/// What a pair of neighbours becomes, and when.
struct Merge {
  std::uint64_t pair = 0;
  std::uint32_t rank = 0;
  TokenId result = -1;  ///< -1: the pair stays two
};

class MergeTable {
 public:
  explicit MergeTable(const TokenizerSpec& spec);
  /// The merge of two neighbours; result -1 where there is none.
  const Merge& find(TokenId left, TokenId right) const;

 private:
  std::vector<Merge> slots_;  // a power of two; result -1 where free
};

/// What a thread keeps between two pieces: their ids, and room to work in.
class BpeMemory {
 public:
  BpeMemory();

 private:
  friend class Bpe;
  static constexpr std::size_t max_bytes = 31;
  static constexpr std::size_t max_ids = 8;
  struct Known {
    std::uint8_t num_bytes = 0;  // 0: nothing known
    std::array<char, max_bytes> bytes{};
    std::array<TokenId, max_ids> ids{};
    std::uint8_t num_ids = 0;
  };
  struct Symbol {
    TokenId id = 0;
    std::int32_t previous = -1;
    std::int32_t next = -1;
  };
  /// A pair that may be merged, unless its halves have become others meanwhile.
  struct Candidate {
    std::uint32_t rank = 0;
    std::int32_t at = 0;
    TokenId left = 0;
    TokenId right = 0;
    TokenId result = 0;
  };
  std::vector<Known> known_;
  std::vector<TokenId> start_;
  std::vector<Merge> pairs_;
  std::vector<Symbol> symbols_;
  std::vector<Candidate> heap_;
};

class Bpe {
 public:
  /// `spec` must outlive it.
  explicit Bpe(const TokenizerSpec& spec);

  /// Appends the ids of `piece`, which is UTF-8 and not empty.
  void encode(std::string_view piece, std::vector<TokenId>& ids, BpeMemory& memory) const;

 private:
  void word(std::string_view word, std::vector<TokenId>& ids, BpeMemory& memory) const;
  void compute(std::string_view word, std::vector<TokenId>& ids, BpeMemory& memory) const;
  void start(std::string_view word, std::vector<TokenId>& ids) const;
  void start_with_character(std::string_view character, std::vector<TokenId>& ids,
                            bool& pending) const;
  void merge_short(std::vector<TokenId>& ids, BpeMemory& memory) const;
  void merge_long(std::vector<TokenId>& ids, BpeMemory& memory) const;
  bool can_cut_at_spaces() const;

  const TokenizerSpec& spec_;
  PieceTable pieces_;
  MergeTable merges_;
  std::array<TokenId, 256> byte_ids_{};  // of single bytes, or of <0x00> to <0xFF>
  bool cuts_at_spaces_ = false;
};

}  // namespace atl::io
