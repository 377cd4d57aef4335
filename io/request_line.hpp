#pragma once
// One line of the requests file: what it asks for.

#include <optional>
#include <string>

#include "io/requests.hpp"

namespace atl::io {

/// Fills `request` from a line; prompts and continuations that are text stay text. Throws Error
/// with the reason why it is refused; what was read until then stays. `is_batch_file`: whether the
/// file is of OpenAI's batch format; where that is not known yet, this line says it.
void parse_line(const std::string& line, const RequestLimits& limits, const ModelText& text,
                std::optional<bool>& is_batch_file, Request& request);

}  // namespace atl::io
