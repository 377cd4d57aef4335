#include "io/tokenizer/bpe.hpp"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "io/utf8.hpp"

namespace atl::io {
namespace {

constexpr std::size_t known_words = 1 << 15;  // of a thread
// Up to here looking at all pairs for each merge is faster than a heap.
constexpr std::size_t max_short = 48;
constexpr std::string_view visible_space = "\xe2\x96\x81";  // U+2581, a space in SentencePiece

std::uint64_t pair_of(TokenId left, TokenId right) {
  return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 |
         static_cast<std::uint32_t>(right);
}

/// Spreads the bits of a pair over a number of which the upper ones are used.
std::uint64_t mixed(std::uint64_t pair) {
  pair ^= pair >> 29;
  return pair * 0x9e3779b97f4a7c15;
}

}  // namespace

PieceTable::PieceTable(const TokenizerSpec& spec) : spec_(spec) {
  const auto size = static_cast<std::size_t>(spec.num_pieces());
  slots_.assign(std::bit_ceil(2 * size + 1), -1);
  for (TokenId id = 0; id < spec.num_pieces(); ++id) {
    const std::string_view piece = spec.piece(id);
    if (piece.empty() || std::ranges::binary_search(spec.unreachable, id)) continue;
    std::size_t slot = XXH3_64bits(piece.data(), piece.size()) & (slots_.size() - 1);
    while (slots_[slot] >= 0 && spec.piece(slots_[slot]) != piece) {
      slot = (slot + 1) & (slots_.size() - 1);
    }
    if (slots_[slot] < 0) slots_[slot] = id;
  }
}

TokenId PieceTable::find(std::string_view piece) const {
  std::size_t slot = XXH3_64bits(piece.data(), piece.size()) & (slots_.size() - 1);
  while (slots_[slot] >= 0 && spec_.piece(slots_[slot]) != piece) {
    slot = (slot + 1) & (slots_.size() - 1);
  }
  return slots_[slot];
}

MergeTable::MergeTable(const TokenizerSpec& spec) {
  const std::size_t size = spec.merges.size() / 3;
  slots_.resize(std::bit_ceil(2 * size + 1));
  for (std::size_t m = 0; m < size; ++m) {
    Merge merge;
    merge.pair = pair_of(static_cast<TokenId>(spec.merges[3 * m]),
                         static_cast<TokenId>(spec.merges[3 * m + 1]));
    merge.result = static_cast<TokenId>(spec.merges[3 * m + 2]);
    merge.rank = static_cast<std::uint32_t>(spec.merge_by_id ? spec.merges[3 * m + 2] : m);
    std::size_t slot = mixed(merge.pair) >> 20 & (slots_.size() - 1);
    while (slots_[slot].result >= 0 && slots_[slot].pair != merge.pair) {
      slot = (slot + 1) & (slots_.size() - 1);
    }
    slots_[slot] = merge;  // of a pair that comes twice the last counts
  }
}

const Merge& MergeTable::find(TokenId left, TokenId right) const {
  const std::uint64_t pair = pair_of(left, right);
  std::size_t slot = mixed(pair) >> 20 & (slots_.size() - 1);
  while (slots_[slot].result >= 0 && slots_[slot].pair != pair) {
    slot = (slot + 1) & (slots_.size() - 1);
  }
  return slots_[slot];
}

BpeMemory::BpeMemory() : known_(known_words) {}

Bpe::Bpe(const TokenizerSpec& spec) : spec_(spec), pieces_(spec), merges_(spec) {
  for (int byte = 0; byte < 256; ++byte) {
    const char one = static_cast<char>(byte);
    byte_ids_[static_cast<std::size_t>(byte)] =
        pieces_.find(spec.byte_level ? std::string(1, one) : fmt::format("<0x{:02X}>", byte));
  }
  cuts_at_spaces_ = can_cut_at_spaces();
}

/// Whether nothing ever joins across the beginning of a run of visible spaces. Then the words of a
/// text without a pre-tokenizer are encoded one by one, which is the same and much faster.
bool Bpe::can_cut_at_spaces() const {
  if (spec_.byte_level || spec_.ignore_merges || pieces_.find(visible_space) < 0) return false;
  for (std::size_t m = 0; m < spec_.merges.size(); m += 3) {
    const std::string_view left = spec_.piece(static_cast<TokenId>(spec_.merges[m]));
    const std::string_view right = spec_.piece(static_cast<TokenId>(spec_.merges[m + 1]));
    if (right.starts_with(visible_space) && !left.ends_with(visible_space)) return false;
  }
  return true;
}

void Bpe::encode(std::string_view piece, std::vector<TokenId>& ids, BpeMemory& memory) const {
  std::size_t begin = 0;
  if (cuts_at_spaces_) {
    for (std::size_t at = 0; (at = piece.find(visible_space, at)) != std::string_view::npos;) {
      const bool in_run = at > begin && piece.substr(begin, at - begin).ends_with(visible_space);
      if (at > begin && !in_run) {
        word(piece.substr(begin, at - begin), ids, memory);
        begin = at;
      }
      at += visible_space.size();
    }
  }
  word(piece.substr(begin), ids, memory);
}

void Bpe::word(std::string_view word, std::vector<TokenId>& ids, BpeMemory& memory) const {
  if (word.size() > BpeMemory::max_bytes) return compute(word, ids, memory);
  const std::uint64_t hash = XXH3_64bits(word.data(), word.size());
  BpeMemory::Known& known = memory.known_[hash & (known_words - 1)];
  if (known.num_bytes == word.size() &&
      std::memcmp(known.bytes.data(), word.data(), word.size()) == 0) {
    ids.insert(ids.end(), known.ids.begin(), known.ids.begin() + known.num_ids);
    return;
  }
  const std::size_t before = ids.size();
  compute(word, ids, memory);
  const std::size_t count = ids.size() - before;
  if (count > BpeMemory::max_ids) return;
  known.num_bytes = static_cast<std::uint8_t>(word.size());
  known.num_ids = static_cast<std::uint8_t>(count);
  std::copy(word.begin(), word.end(), known.bytes.begin());
  std::copy(ids.begin() + static_cast<std::ptrdiff_t>(before), ids.end(), known.ids.begin());
}

void Bpe::compute(std::string_view word, std::vector<TokenId>& ids, BpeMemory& memory) const {
  if (spec_.ignore_merges) {
    if (const TokenId whole = pieces_.find(word); whole >= 0) {
      ids.push_back(whole);
      return;
    }
  }
  std::vector<TokenId>& symbols = memory.start_;
  symbols.clear();
  start(word, symbols);
  if (symbols.size() > max_short) {
    merge_long(symbols, memory);
  } else if (symbols.size() > 1) {
    merge_short(symbols, memory);
  }
  ids.insert(ids.end(), symbols.begin(), symbols.end());
}

/// The symbols that merging starts from: one for each byte or character.
void Bpe::start(std::string_view word, std::vector<TokenId>& ids) const {
  bool pending = false;  // an unknown token that has not been written yet
  for (std::size_t i = 0; i < word.size();) {
    const auto length = static_cast<std::size_t>(
        spec_.byte_level ? 1 : std::max(1, utf8_sequence(word.substr(i, 4))));
    start_with_character(word.substr(i, length), ids, pending);
    i += length;
  }
  if (pending) ids.push_back(spec_.unknown);
}

/// As in Hugging Face's, an unknown token is written when the next one is, or a known character.
void Bpe::start_with_character(std::string_view character, std::vector<TokenId>& ids,
                               bool& pending) const {
  const auto byte_id = [&](char c) { return byte_ids_[static_cast<unsigned char>(c)]; };
  const TokenId id = spec_.byte_level ? byte_id(character[0]) : pieces_.find(character);
  if (id >= 0) {
    if (pending) ids.push_back(spec_.unknown);
    pending = false;
    ids.push_back(id);
    return;
  }
  if (spec_.byte_fallback &&
      std::ranges::all_of(character, [&](char c) { return byte_id(c) >= 0; })) {
    for (const char c : character) ids.push_back(byte_id(c));
    return;
  }
  if (spec_.unknown < 0) return;
  if (pending && !spec_.fuse_unknown) ids.push_back(spec_.unknown);
  pending = true;
}

void Bpe::merge_short(std::vector<TokenId>& ids, BpeMemory& memory) const {
  std::vector<Merge>& pairs = memory.pairs_;  // of each symbol and the next
  pairs.clear();
  for (std::size_t i = 0; i + 1 < ids.size(); ++i) {
    pairs.push_back(merges_.find(ids[i], ids[i + 1]));
  }
  for (;;) {
    std::size_t best = pairs.size();
    for (std::size_t i = 0; i < pairs.size(); ++i) {
      const bool first = best == pairs.size();
      if (pairs[i].result >= 0 && (first || pairs[i].rank < pairs[best].rank)) best = i;
    }
    if (best == pairs.size()) return;
    ids[best] = pairs[best].result;
    ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    pairs.erase(pairs.begin() + static_cast<std::ptrdiff_t>(best));
    if (best > 0) pairs[best - 1] = merges_.find(ids[best - 1], ids[best]);
    if (best < pairs.size()) pairs[best] = merges_.find(ids[best], ids[best + 1]);
  }
}

void Bpe::merge_long(std::vector<TokenId>& ids, BpeMemory& memory) const {
  auto& symbols = memory.symbols_;
  auto& heap = memory.heap_;
  symbols.clear();
  heap.clear();
  const auto count = static_cast<std::int32_t>(ids.size());
  for (std::int32_t i = 0; i < count; ++i) {
    symbols.push_back({ids[static_cast<std::size_t>(i)], i - 1, i + 1 < count ? i + 1 : -1});
  }
  const auto symbol = [&](std::int32_t i) -> BpeMemory::Symbol& {
    return symbols[static_cast<std::size_t>(i)];
  };
  const auto later = [](const BpeMemory::Candidate& a, const BpeMemory::Candidate& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.at > b.at;
  };
  const auto offer = [&](std::int32_t at) {
    if (at < 0 || symbol(at).next < 0) return;
    const TokenId left = symbol(at).id;
    const TokenId right = symbol(symbol(at).next).id;
    const Merge& merge = merges_.find(left, right);
    if (merge.result < 0) return;
    heap.push_back({merge.rank, at, left, right, merge.result});
    std::ranges::push_heap(heap, later);
  };
  for (std::int32_t i = 0; i < count; ++i) offer(i);
  while (!heap.empty()) {
    std::ranges::pop_heap(heap, later);
    const BpeMemory::Candidate best = heap.back();
    heap.pop_back();
    BpeMemory::Symbol& left = symbol(best.at);
    if (left.id != best.left || left.next < 0 || symbol(left.next).id != best.right) continue;
    BpeMemory::Symbol& right = symbol(left.next);
    left.id = best.result;
    left.next = right.next;
    right.id = -1;  // gone
    if (left.next >= 0) symbol(left.next).previous = best.at;
    offer(left.previous);
    offer(best.at);
  }
  ids.clear();
  for (std::int32_t i = 0; i >= 0; i = symbol(i).next) ids.push_back(symbol(i).id);
}

}  // namespace atl::io
