#include "io/tokenizer/byte_alphabet.hpp"

#include <algorithm>
#include <array>

#include "io/utf8.hpp"

namespace atl::io {
namespace {

constexpr char32_t first_moved = 256;  // the bytes that do not print stand from here on, in order

bool prints(int byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte != 0xad);
}

struct Alphabet {
  std::array<int, 512> byte_of{};  // by code point; -1 where there is none
  Alphabet() {
    byte_of.fill(-1);
    char32_t moved = first_moved;
    for (int byte = 0; byte < 256; ++byte) {
      byte_of[prints(byte) ? static_cast<std::size_t>(byte) : moved++] = byte;
    }
  }
};

}  // namespace

std::optional<std::string> bytes_of_alphabet(std::string_view text) {
  static const Alphabet alphabet;
  std::string bytes;
  for (std::size_t i = 0; i < text.size();) {
    const int length = utf8_sequence(text.substr(i, 4));
    // No byte's character needs more than two bytes.
    if (length < 1 || length > 2) return std::nullopt;
    const auto lead = static_cast<unsigned char>(text[i]);
    const std::size_t code =
        length == 1 ? lead
                    : (lead & 0x1fU) << 6 | (static_cast<unsigned char>(text[i + 1]) & 0x3fU);
    if (code >= alphabet.byte_of.size() || alphabet.byte_of[code] < 0) return std::nullopt;
    bytes += static_cast<char>(alphabet.byte_of[code]);
    i += static_cast<std::size_t>(length);
  }
  return bytes;
}

}  // namespace atl::io
