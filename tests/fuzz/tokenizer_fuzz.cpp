// A tokenizer file from anywhere (first byte: 'j' tokenizer.json, 't' tekken.json, 'r' ranks, 'm'
// the steps of a model file), and after a zero byte a text, perhaps not UTF-8: ids are of the
// vocabulary, what comes back is UTF-8, and bytes come back as they were.
#include <algorithm>
#include <string>

#include "io/tokenizer/encoder.hpp"
#include "io/tokenizer/import.hpp"
#include "io/utf8.hpp"
#include "tests/fuzz/fuzz_input.hpp"

namespace {

using namespace atl;

// Patterns may take time that grows fast with the text.
constexpr std::size_t max_text = 64;

io::TokenizerSpec read(char kind, const std::string& file) {
  if (kind == 'j') return io::tokenizer_from_json(file);
  if (kind == 't') return io::tokenizer_from_tekken(file);
  if (kind == 'm') {
    return io::from_attachments(
        {{"/tokenizer/steps", 1, file},
         {"/tokenizer/pieces", 1, "abc"},
         {"/tokenizer/piece_ends", 4, std::string("\1\0\0\0\2\0\0\0\3\0\0\0", 12)}});
  }
  io::TokenizerConfig config;
  config.tokenizer_class = "TikTokenTokenizer";
  return io::tokenizer_from_tiktoken(file, config);
}

/// Whether any text must come back as it was.
bool is_lossless(const io::TokenizerSpec& spec) {
  if (!spec.byte_level || !spec.normal.empty()) return false;
  const auto changes = [](const io::CutStep& step) {
    return step.kind != io::CutStep::Kind::split || step.behavior == io::SplitBehavior::removed;
  };
  if (std::ranges::any_of(spec.cuts, changes)) return false;
  const auto trims = [](const io::AddedToken& token) { return token.lstrip || token.rstrip; };
  if (std::ranges::any_of(spec.added, trims)) return false;
  const io::PieceTable pieces(spec);
  for (int byte = 0; byte < 256; ++byte) {
    const char one = static_cast<char>(byte);
    if (pieces.find({&one, 1}) < 0) return false;
  }
  return true;
}

void check(const io::Tokenizer& tokenizer, const std::string& text) {
  io::EncodeMemory memory;
  const io::TokenId num_ids = tokenizer.spec().num_ids();
  const auto ids = tokenizer.encode(text, true, memory);
  fuzz::expect(io::is_utf8(text));
  fuzz::expect(std::ranges::all_of(ids, [&](io::TokenId id) { return id >= 0 && id < num_ids; }));
  fuzz::expect(tokenizer.encode(text, true, memory) == ids);  // from what is remembered
  fuzz::expect(io::is_utf8(tokenizer.decode(ids, {.special_tokens = true})));
  const auto plain = tokenizer.encode(text, false, memory);
  if (is_lossless(tokenizer.spec())) {
    fuzz::expect(tokenizer.decode(plain, {.special_tokens = true}) == text);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string input(reinterpret_cast<const char*>(data) + 1, size - 1);
  const std::size_t end = std::min(input.find('\0'), input.size());
  const std::string text = input.substr(std::min(end + 1, input.size()), max_text);
  fuzz::expect(io::is_utf8(io::mended_utf8(text)));
  fuzz::expect(!io::is_utf8(text) || io::mended_utf8(text) == text);
  fuzz::accepted([&] {
    const io::TokenizerSpec spec = read(static_cast<char>(data[0]), input.substr(0, end));
    const io::TokenizerSpec kept = io::from_attachments(io::to_attachments(spec));
    const io::Tokenizer tokenizer(kept);
    check(tokenizer, text);
    check(tokenizer, io::mended_utf8(text));
  });
  return 0;
}
