#pragma once
// What is where in a file of experts' choices, for its writer and its reader.

#include <cstdint>

namespace atl::io {

inline constexpr std::uint64_t routing_format_version = 1;
inline constexpr const char* routing_layers_path = "/layers";
inline constexpr const char* routing_experts_path = "/experts";
inline constexpr const char* routing_weights_path = "/weights";
inline constexpr const char* routing_sums_path = "/requests/xxh3_64";

}  // namespace atl::io
