#pragma once
// What an import makes of weights that a folder has in few bits.

#include <cstdint>
#include <string_view>

namespace atl {

enum class KeptWeights : std::uint8_t {
  none,   ///< they become numbers of the folder's `dtype`
  coded,  ///< they stay codes with scales (io/README.md), where layers multiply rows by them
};

constexpr std::string_view name_of(KeptWeights weights) {
  return weights == KeptWeights::coded ? "keep" : "unpack";
}

}  // namespace atl
