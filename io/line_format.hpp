#pragma once
// The forms in which requests come and results go.

#include <cstdint>
#include <string_view>

namespace atl::io {

enum class LineFormat : std::uint8_t {
  atoll,
  openai,  ///< OpenAI's batch format
};

constexpr std::string_view name_of(LineFormat format) {
  return format == LineFormat::openai ? "openai" : "atoll";
}

}  // namespace atl::io
