#pragma once
// Which ways there are in which rows travel, for who only names them.

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>

namespace atl::comm {

enum class TransportKind : std::uint8_t { ialltoallv, pairwise, pairwise_staged };

/// A row of the table. What makes a transport is beside it, in transport.cpp, in the same order.
struct TransportInfo {
  TransportKind kind;
  std::string_view name;  ///< as on the command line
  bool staged;            ///< device memory, through pinned host memory
};
/// All there are, in order of TransportKind.
inline constexpr std::array<TransportInfo, 3> transports = {{
    {TransportKind::ialltoallv, "ialltoallv", false},
    {TransportKind::pairwise, "pairwise", false},
    {TransportKind::pairwise_staged, "pairwise-staged", true},
}};

constexpr const TransportInfo& info_of(TransportKind kind) {
  return transports[static_cast<std::size_t>(kind)];
}
constexpr std::string_view name_of(TransportKind kind) {
  return info_of(kind).name;
}
/// None for a name that is not in the table, as "auto" is not.
constexpr std::optional<TransportKind> transport_named(std::string_view name) {
  for (const TransportInfo& transport : transports) {
    if (transport.name == name) return transport.kind;
  }
  return std::nullopt;
}

}  // namespace atl::comm
