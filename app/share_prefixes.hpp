#pragma once
// Whether beginnings that prompts have in common are computed once.

#include <cstdint>
#include <string_view>

namespace atl {

enum class SharePrefixes : std::uint8_t {
  automatic,  ///< where nothing needs the rows of each request
  off,
};

constexpr std::string_view name_of(SharePrefixes share) {
  return share == SharePrefixes::off ? "off" : "auto";
}

}  // namespace atl
