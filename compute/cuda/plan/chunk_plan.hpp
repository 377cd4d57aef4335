#pragma once
// The work of a chunk's attention, by kind of layer. Pure host code.

#include <cstdint>
#include <span>
#include <vector>

#include "compute/backend.hpp"
#include "compute/cuda/plan/attention_plan.hpp"

namespace atl::compute::cuda {

/// One launch of attention: tiles and merges from so many on, among those of the whole chunk.
struct AttendWork {
  bool by_groups = false;  ///< by warpgroups
  std::int64_t first_tile = 0;
  int num_wide = 0;
  int num_narrow = 0;
  std::int64_t first_merge = 0;
  int num_merges = 0;
  // Of latent attention, whose tiles and merges count rows from here on:
  int first_row = 0;  ///< of the chunk, or among its generated rows
  int num_rows = 0;
  int segment = 0;  ///< of prompt rows, which attend to keys expanded
  int context = 0;  ///< up to here
};

/// How heads of a rank's latent attention are computed.
struct LatentHeads {
  LatentHeads() = default;
  explicit LatentHeads(const BackendOptions& options);

  AttendedHeads expanded;  ///< so many at once as there is room for
  AttendedHeads absorbed;  ///< one head of keys, the latents
  int at_once = 0;         ///< heads whose keys and values are expanded together
  int positions = 0;       ///< room for so many
};
/// Generated rows that attend to latents together.
inline constexpr int latent_rows_at_once = 256;
/// Latents that are expanded by one product.
inline constexpr int latents_at_once = 2048;

/// The work of all layers of one chunk; memory is reused.
class ChunkPlan {
 public:
  explicit ChunkPlan(const BackendOptions& options);

  /// For a chunk of these segments. `by_wgmma`: warpgroups compute the layers of kinds that they
  /// have a kernel for.
  void cut(std::span<const Segment> segments, int multiprocessors, bool by_wgmma);

  std::vector<AttentionTile> tiles;
  std::vector<AttentionMerge> merges;
  std::vector<AttendWork> of_kind;  ///< [kinds of attention], over keys and values
  std::vector<AttendWork> expanded;
  std::vector<AttendWork> absorbed;
  std::vector<std::int32_t> generated;  ///< rows of the chunk that attend to latents

  /// Most of each list, for buffers on the device.
  static std::int64_t most_tiles(const BackendOptions& options);
  static std::int64_t most_merges(const BackendOptions& options);
  static std::int64_t workspace_floats(const BackendOptions& options);
  static std::int64_t totals_floats(const BackendOptions& options);  ///< see AttentionArgs::totals
  /// Whether warpgroups have a kernel for a kind of this rank's layers.
  static bool takes_wgmma(const BackendOptions& options);

 private:
  AttendWork add(const AttendedHeads& heads, bool by_groups, std::span<const Segment> segments,
                 std::int64_t workspace_rows);
  void cut_latents(std::span<const Segment> segments);

  BackendOptions options_;
  std::vector<AttendedHeads> kinds_;  // num_heads 0: no layer here is of this kind
  LatentHeads latent_;
  std::vector<Segment> some_;
  AttentionPlan plan_;
  int multiprocessors_ = 0;
};

/// Of the rank's layers the first of each kind of attention; -1: it has none.
std::vector<int> layers_of_kinds(const BackendOptions& options);

}  // namespace atl::compute::cuda
