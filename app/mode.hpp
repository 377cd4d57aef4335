#pragma once
// What a run does with its prompts.

#include <cstdint>
#include <string_view>

namespace atl {

enum class Mode : std::uint8_t {
  generate,  ///< continues them
  score,     ///< gives the log-probability of each of their tokens
};

constexpr std::string_view name_of(Mode mode) {
  return mode == Mode::score ? "score" : "generate";
}

}  // namespace atl
