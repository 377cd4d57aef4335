#pragma once
// How the rows of a chunk are cut into the work of attention's blocks. Pure host code.
//
// The arithmetic of a row does not depend on the cuts. Keys are taken in blocks of 64 at fixed
// positions, and blocks in splits of 512 at fixed positions; a split is an online softmax of its
// own, and splits are merged one after another. A tile may do all splits of its rows, or one of
// them, whose result is then merged by a second kernel with the same formula.

#include <cstdint>
#include <span>
#include <vector>

#include "compute/backend.hpp"

namespace atl::compute::cuda {

inline constexpr int max_head_dim = 512;     ///< any even number up to it
inline constexpr int latent_head_dim = 576;  ///< of latents: any even number up to it
inline constexpr int key_block = 64;         ///< page_tokens is a multiple of it

/// Positions of one split; a multiple of key_block.
inline constexpr int split_keys = 512;

/// Rows of the narrow tile's matrices: decode. A matrix row is one query head of one token; heads
/// that share a kv head lie beside each other.
inline constexpr int narrow_rows = 16;
/// Rows of the wide tile's: prefill.
constexpr int wide_rows(int head_dim) {
  return head_dim <= 128 ? 128 : (head_dim <= 256 ? 64 : 32);
}
/// Rows of the matrices of either kind. Warpgroups multiply 64 at a time.
constexpr int tile_rows(int head_dim, bool narrow, bool by_groups) {
  const int rows = narrow ? narrow_rows : wide_rows(head_dim);
  return by_groups && rows < 64 ? 64 : rows;
}

/// What the attention of layers of one kind is planned for: heads of a rank, in groups as large as
/// the largest that it has.
struct AttendedHeads {
  AttendedHeads() = default;
  /// Of a model whose layers are alike, on a rank alone.
  AttendedHeads(const ModelShape& shape)  // NOLINT(google-explicit-constructor)
      : num_heads(shape.num_heads),
        num_kv_heads(shape.num_kv_heads),
        head_dim(shape.head_dim),
        value_dim(shape.values_dim()),
        max_positions(shape.max_positions) {}

  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int value_dim = 0;
  int max_positions = 0;
  int window = 0;      ///< see AttentionKind
  bool sinks = false;  ///< the same
};
/// Of a layer of this rank whose attention is over keys and values.
AttendedHeads attended_heads(const BackendOptions& options, int layer);

/// Whether warpgroups have a kernel for layers of this kind, whose attention is over keys and
/// values. All rows of such layers are then computed by it, where the device has them.
bool wgmma_attends(const AttendedHeads& heads, DType dtype);

/// Query heads of one kv head that a tile of `rows` takes: all, or as many as it has rows.
constexpr int heads_per_tile(const AttendedHeads& heads, int rows) {
  const int group = heads.num_heads / heads.num_kv_heads;
  return group < rows ? group : rows;
}

/// Consecutive rows of one segment and the keys they are compared with: all up to their own, or
/// those of a window, from the block on in which the first row's begins. Each tile is computed once
/// per kv head (more often where not all heads of a group fit).
struct AttentionTile {
  std::int32_t first_row = 0;
  std::int32_t num_rows = 0;
  std::int32_t sequence = 0;        ///< segment of the rows
  std::int32_t first_position = 0;  ///< of first_row
  std::int32_t first_key = 0;       ///< where a split begins, or a block of the first one
  std::int32_t num_keys = 0;
  std::int32_t partial = -1;  ///< -1: writes results; else workspace row of its first row
};

/// A row whose splits are computed by several tiles: split i lies in workspace row
/// first_partial + i * stride.
struct AttentionMerge {
  std::int32_t row = 0;
  std::int32_t first_partial = 0;
  std::int32_t num_partials = 0;
  std::int32_t stride = 0;
};

struct AttentionPlan {
  bool by_groups = false;            ///< given to plan_attention(): warpgroups will compute it
  std::vector<AttentionTile> tiles;  ///< wide ones, then narrow ones; those with most keys first
  int num_wide = 0;
  int num_narrow = 0;
  std::vector<AttentionMerge> merges;

  std::int64_t workspace_rows() const;  ///< that it takes
};

/// Floats of one workspace row: for each head its unnormalised result, padded to 16 bytes, then the
/// softmax's maximum and sum.
constexpr int partial_floats_per_head(int head_dim) {
  return (head_dim + 3) / 4 * 4 + 4;
}
/// Rows and floats of the workspace that plan_attention() counts on (about 64 MiB, or fewer where a
/// chunk of max_chunk_tokens cannot need as many).
std::int64_t attention_workspace_rows(const AttendedHeads& heads, int max_chunk_tokens);
std::int64_t attention_workspace_floats(const AttendedHeads& heads, int max_chunk_tokens);

/// Where the results of 64 rows are too wide for registers and shared memory, warpgroups keep the
/// totals of splits in memory, for so many blocks of threads at a time: floats of that.
inline constexpr int most_blocks_with_totals = 132;
std::int64_t attention_totals_floats(const AttendedHeads& heads);

/// Fills `plan` (whose memory is reused) for the segments of a chunk. Tiles are split along their
/// keys where there are too few of them to occupy `multiprocessors`, as far as `workspace_rows`
/// last.
void plan_attention(const AttendedHeads& heads, std::span<const Segment> segments,
                    int multiprocessors, std::int64_t workspace_rows, AttentionPlan& plan);

/// Upper bounds for the sizes of the plan's lists, for buffers on the device.
std::int64_t max_attention_tiles(const AttendedHeads& heads, int max_chunk_tokens);

}  // namespace atl::compute::cuda
