#pragma once
// UTF-8: where its sequences end, and text from bytes that may not be any.

#include <string>
#include <string_view>

namespace atl::io {

inline constexpr std::string_view replacement_character = "\xef\xbf\xbd";  // U+FFFD

/// Length of the well-formed UTF-8 sequence at the start of `text`, or minus the length of the
/// longest part of one (at least 1), which stands for one U+FFFD. `text` is not empty.
int utf8_sequence(std::string_view text);

/// Whether all of `text` is well-formed.
bool is_utf8(std::string_view text);

/// The text with U+FFFD for each longest part of a sequence that is not well-formed, as Unicode
/// recommends and Rust's and Python's decoders do.
std::string mended_utf8(std::string_view bytes);

}  // namespace atl::io
