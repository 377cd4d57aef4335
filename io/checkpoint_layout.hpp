#pragma once
// What the checkpoint file's format is made of, for its reader and its writer.

#include <array>
#include <cstdint>

namespace atl::io {

inline constexpr std::uint64_t checkpoint_format_version = 2;

/// Datasets that are written by ranks in turn, each a part; and how a part is counted.
inline constexpr std::size_t num_part_counts = 6;
enum PartCount : std::size_t {
  part_sequences,
  part_tokens,
  part_logprobs,
  part_positions,
  part_pieces,
  part_tops
};
using PartCounts = std::array<std::int64_t, num_part_counts>;

inline constexpr std::size_t sequence_fields = 9;
inline constexpr std::size_t kv_checksum_fields = 2;  // of keys, of values

}  // namespace atl::io
