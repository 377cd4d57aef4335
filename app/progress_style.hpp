#pragma once

#include <cstdint>
#include <string_view>

namespace atl {

/// How progress is shown on stderr.
enum class ProgressStyle : std::uint8_t { bar, lines, none };

constexpr std::string_view name_of(ProgressStyle style) {
  return style == ProgressStyle::bar ? "bar" : style == ProgressStyle::lines ? "lines" : "none";
}

}  // namespace atl
