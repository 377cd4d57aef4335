#pragma once
// What is done to text before it is cut.

#include <string>
#include <string_view>
#include <vector>

#include "io/tokenizer/spec.hpp"

namespace atl::io {

/// `text` (UTF-8) after all steps, in their order.
std::string normalized(std::string_view text, const std::vector<NormalStep>& steps);

/// Replaces every `from`, which is not empty, from left to right.
void replace_all(std::string& text, std::string_view from, std::string_view to);

/// Length in bytes of the white space character (Unicode's White_Space) that `text` begins or ends
/// with; 0 where it does not.
std::size_t space_at_start(std::string_view text);
std::size_t space_at_end(std::string_view text);

}  // namespace atl::io
