#pragma once
// A guard for JSON from outside.

#include <string_view>

namespace atl::io {

/// Throws Error, starting with `what`, when arrays and objects of a JSON text nest deeper than any
/// file that Atoll reads. The JSON library prints and copies values by recursion: a text of a few
/// hundred thousand brackets would overflow the stack.
void require_shallow_json(std::string_view text, std::string_view what);

}  // namespace atl::io
