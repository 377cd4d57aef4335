#pragma once
// How latent attention uses the kernels of attention over keys and values.

#include <cstdint>

#include "compute/cpu/kv.hpp"

namespace atl::compute {

/// Rows of one head that attend to expanded keys together.
inline constexpr int latent_tile_rows = 96;
/// Heads that attend to latents together, for each of which a panel of them is turned once.
inline constexpr int latent_head_group = 32;

inline std::int64_t whole_panels(std::int64_t positions) {
  return (positions + panel_tokens - 1) / panel_tokens * panel_tokens;
}

/// Keys and values of one head, expanded, in one page of so many positions.
KvLayout expanded_layout(const KvLayout& layout, int positions);
/// Latents as the keys, and their first part as the values, of all heads.
KvLayout absorbed_layout(const KvLayout& layout, const ModelShape& shape);

}  // namespace atl::compute
