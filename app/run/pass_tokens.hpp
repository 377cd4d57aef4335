#pragma once

#include <cstdint>

namespace atl {

/// What one pass did on one rank.
struct PassTokens {
  std::int64_t processed = 0;  ///< through the layers
  std::int64_t prompt = 0;     ///< of these, tokens of prompts
  std::int64_t generated = 0;
};

}  // namespace atl
