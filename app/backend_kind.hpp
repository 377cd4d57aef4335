#pragma once
// Which backend does the arithmetic, for who only names it.

#include <cstdint>
#include <string_view>

namespace atl {

enum class BackendKind : std::uint8_t { cpu, cuda };

constexpr std::string_view name_of(BackendKind kind) {
  return kind == BackendKind::cuda ? "cuda" : "cpu";
}

}  // namespace atl
