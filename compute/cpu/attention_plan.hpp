#pragma once
// How the attention of a chunk is cut into tasks.

#include <cstdint>
#include <span>
#include <vector>

#include "compute/backend.hpp"
#include "compute/cpu/kv.hpp"

namespace atl::compute {

/// Consecutive rows of one segment, whose keys are read together.
struct AttendTile {
  const Segment* segment = nullptr;
  int first_row = 0;  ///< of the segment
  int num_rows = 0;
  /// Where several tasks share the splits of a kv_head: floats before the states of its first one
  /// (those of the other heads follow), and the place of its first head's count of tasks under way.
  std::int64_t partial = -1;
  int counter = -1;
  int pieces = 1;

  int end_position() const { return segment->first_position + first_row + num_rows; }
  int num_splits() const;
};

/// A task of every kv_head: some splits of a tile.
struct AttendPiece {
  int tile = 0;
  int first_split = 0;
  int end_split = 0;
};

/// Sizes that do not change from pass to pass.
struct AttendLimits {
  KvLayout layout;
  int group = 1;  ///< query heads of a kv_head, at most
  int num_threads = 1;
  int tile_rows = 1;                ///< at most
  std::int64_t partial_floats = 0;  ///< room for states of splits
};

/// What attending takes at most: limits, and memory for states of splits that are shared by threads
/// (see AttendTile::partial), at most 64 MiB of it unless one sequence needs more. Layers of one
/// kind of attention have the same.
AttendLimits attend_limits_of(const BackendOptions& options, int layer = 0);

/// Cuts every chunk anew.
class AttendPlan {
 public:
  /// Takes the memory for chunks of `max_tokens` rows.
  void reserve(std::int64_t max_tokens, const AttendLimits& limits);
  /// Tiles of all rows, and pieces by falling cost. A tile is cut where its tasks would be so long
  /// that threads end unevenly, and where `limits` has room for its states.
  void cut(std::span<const Segment> segments, const AttendLimits& limits);

  std::span<const AttendTile> tiles() const { return tiles_; }
  std::span<const AttendPiece> pieces() const { return pieces_; }
  /// [tiles that are cut, kv_heads]: tasks that have not ended.
  std::span<int> counters() { return counters_; }

 private:
  /// Cuts tiles whose tasks cost more than `most`.
  void share(const AttendLimits& limits, std::int64_t most);

  std::vector<AttendTile> tiles_;
  std::vector<AttendPiece> pieces_;
  std::vector<int> counters_;
};

}  // namespace atl::compute
