#pragma once

#include <cstdint>

namespace atl {

/// What a pass mostly does: it has tokens of prompts, or only new ones.
enum class Phase : std::uint8_t { prefill, decode };

}  // namespace atl
