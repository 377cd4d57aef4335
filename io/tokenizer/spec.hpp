#pragma once
// A tokenizer in the one form that Atoll keeps, whatever file it came from: byte-pair encoding with
// the steps before and after it. It is data; what runs it is in encoder.hpp and decoder.hpp.

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "io/model_file.hpp"

namespace atl::io {

using TokenId = std::int32_t;

/// Ids from here on are refused: no vocabulary is that large, and a table of them must fit memory.
inline constexpr TokenId max_token_ids = 1 << 24;

/// A change of the text before it is cut.
struct NormalStep {
  enum class Kind : std::uint8_t { nfc, prepend, replace };
  Kind kind = Kind::nfc;
  std::string from;  ///< what is replaced
  std::string to;    ///< what takes its place, or stands before a text that is not empty
};

/// What becomes of the places where a pattern matches.
enum class SplitBehavior : std::uint8_t {
  isolated,         ///< each is a piece of its own
  removed,          ///< they are left out
  merged_previous,  ///< they end the piece before them
  merged_next,      ///< they begin the piece after them
  contiguous        ///< neighbours are one piece
};

/// A step that cuts text into pieces, or changes the pieces.
struct CutStep {
  enum class Kind : std::uint8_t {
    split,    ///< cuts at the matches of `pattern`
    replace,  ///< `from` becomes `to` in each piece
    prepend   ///< `to` comes before each piece that does not begin with it
  };
  Kind kind = Kind::split;
  std::string pattern;  ///< as PCRE2 has it
  SplitBehavior behavior = SplitBehavior::isolated;
  bool invert = false;      ///< what does not match counts as the match
  bool only_first = false;  ///< prepend: only where the text begins
  std::string from;
  std::string to;
};

/// A change of the tokens' texts on their way back, in the manner of Hugging Face's decoders. Those
/// of byte-level vocabularies have none: their bytes are joined, and what is not UTF-8 is mended.
struct DecodeStep {
  enum class Kind : std::uint8_t {
    replace,        ///< `from` becomes `to` in each token
    byte_fallback,  ///< tokens <0x00> to <0xFF> are bytes
    fuse,           ///< all tokens become one
    strip,          ///< each token loses up to `start` and `stop` of `from` at its ends
    metaspace       ///< `from` becomes a space; in the first token, with `drop_first`, nothing
  };
  Kind kind = Kind::fuse;
  std::string from;
  std::string to;
  int start = 0;
  int stop = 0;
  bool drop_first = false;
};

/// A token that is found in text before anything else is done with it.
struct AddedToken {
  TokenId id = 0;
  std::string content;
  bool special = false;     ///< left out of text on request
  bool normalized = false;  ///< found in the normalised text, not in the text as it is
  bool lstrip = false;      ///< takes the white space before it
  bool rstrip = false;      ///< and after it
};

/// A file that a tokenizer was made from.
struct TokenizerSource {
  std::string file;        ///< its name, without folders
  std::uint64_t hash = 0;  ///< xxh3-64 of its bytes
};

struct TokenizerSpec {
  std::vector<TokenizerSource> sources;
  /// Set: why there is no text with this tokenizer. Nothing below counts then.
  std::string unsupported;

  // Pieces by id: the bytes of piece i end at piece_ends[i] and begin where the one before ends.
  // Ids that have no piece have no bytes.
  std::string piece_bytes;
  std::vector<std::uint32_t> piece_ends;
  /// Pieces that no merge and no look-up may give, though their bytes could: they are text that the
  /// byte alphabet does not have. Rising.
  std::vector<TokenId> unreachable;
  /// [merges][3]: left, right, what they become. Earlier ones come first, or with merge_by_id those
  /// that give a smaller id.
  std::vector<std::uint32_t> merges;
  bool merge_by_id = false;
  bool byte_level = false;     ///< pieces are bytes; else they are text, in UTF-8
  bool byte_fallback = false;  ///< characters without a piece become those of their bytes
  bool ignore_merges = false;  ///< what is a piece as a whole is that piece
  bool fuse_unknown = false;
  TokenId unknown = -1;

  std::vector<NormalStep> normal;
  std::vector<CutStep> cuts;
  std::vector<DecodeStep> decode;
  std::vector<AddedToken> added;
  std::vector<TokenId> prefix;  ///< what the template puts before a text: BOS
  std::vector<TokenId> suffix;
  std::map<std::string, std::string> special_tokens;  ///< bos_token, eos_token ... for templates
  std::string chat_template;

  std::string_view piece(TokenId id) const {
    const auto i = static_cast<std::size_t>(id);
    const std::uint32_t begin = i == 0 ? 0 : piece_ends[i - 1];
    return std::string_view(piece_bytes).substr(begin, piece_ends[i] - begin);
  }
  TokenId num_pieces() const { return static_cast<TokenId>(piece_ends.size()); }
  /// One more than the largest id.
  TokenId num_ids() const;

  /// Sets the pieces from one text for each id.
  void set_pieces(const std::vector<std::string>& texts);
};

/// Throws Error where parts do not fit one another (ids without a piece, ends that fall).
void check_spec(const TokenizerSpec& spec);

/// The datasets of the model file's group /tokenizer.
std::vector<Attachment> to_attachments(const TokenizerSpec& spec);
/// Throws Error where they are not what to_attachments() gives.
TokenizerSpec from_attachments(const std::vector<Attachment>& attachments);

}  // namespace atl::io
