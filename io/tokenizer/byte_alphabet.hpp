#pragma once
// The alphabet in which byte-level vocabularies are written: a printable character for each byte.

#include <optional>
#include <string>
#include <string_view>

namespace atl::io {

/// The bytes that a text of this alphabet stands for; nothing where a character is not of it.
std::optional<std::string> bytes_of_alphabet(std::string_view text);

}  // namespace atl::io
