#include "compute/cpu/attention_plan.hpp"

#include <algorithm>

#include "compute/cpu/kernels.hpp"

namespace atl::compute {

namespace {

/// Tasks per thread at which the last ones end evenly enough.
constexpr int tasks_per_thread = 4;
/// Reading a key and its value costs as much as computing with them for so many queries.
constexpr int queries_per_read = 8;

/// Of one kv_head, in any unit.
std::int64_t cost_of(const AttendTile& tile, int first_split, int end_split, int group) {
  const int keys =
      std::min(end_split * split_tokens, tile.end_position()) - first_split * split_tokens;
  return std::int64_t{keys} * (tile.num_rows * group + queries_per_read);
}

}  // namespace

int AttendTile::num_splits() const {
  return (end_position() + split_tokens - 1) / split_tokens;
}

AttendLimits attend_limits_of(const BackendOptions& options, int layer) {
  AttendLimits limits;
  limits.layout = kv_layout_of(options, layer);
  limits.num_threads = options.num_threads;
  const int group = own_heads(options.shape, options.part.attention, layer).most_in_group;
  limits.group = group;
  limits.tile_rows = std::max(1, 96 / group);
  if (options.num_threads > 1) {
    constexpr std::int64_t most_floats = std::int64_t{16} << 20;
    const int kv_heads = limits.layout.num_kv_heads;
    const int splits = (options.shape.max_positions + split_tokens - 1) / split_tokens;
    const std::int64_t sequence = kv_heads * splits * attend_state_floats(limits.layout, group);
    // With more sequences there are enough tasks without cutting any.
    const auto sequences = std::min<std::int64_t>(
        (tasks_per_thread * options.num_threads - 1) / kv_heads + 1, options.most_attention_rows());
    limits.partial_floats =
        splits == 1 ? 0 : std::max(std::min(sequences * sequence, most_floats), sequence);
  }
  return limits;
}

void AttendPlan::reserve(std::int64_t max_tokens, const AttendLimits& limits) {
  const std::int64_t tasks = tasks_per_thread * limits.num_threads;
  tiles_.reserve(static_cast<std::size_t>(max_tokens));
  pieces_.reserve(static_cast<std::size_t>(max_tokens + 2 * tasks));
  counters_.reserve(static_cast<std::size_t>(tasks + limits.layout.num_kv_heads));
}

void AttendPlan::cut(std::span<const Segment> segments, const AttendLimits& limits) {
  const int group = limits.group;
  tiles_.clear();
  pieces_.clear();
  counters_.clear();
  std::int64_t total = 0;
  for (const Segment& segment : segments) {
    for (int first = 0; first < segment.num_rows; first += limits.tile_rows) {
      const int rows = std::min(limits.tile_rows, segment.num_rows - first);
      const AttendTile& tile = tiles_.emplace_back(AttendTile{&segment, first, rows});
      total += limits.layout.num_kv_heads * cost_of(tile, 0, tile.num_splits(), group);
    }
  }
  if (limits.num_threads > 1) share(limits, total / (tasks_per_thread * limits.num_threads) + 1);
  for (std::size_t t = 0; t < tiles_.size(); ++t) {
    const int splits = tiles_[t].num_splits();
    const int count = tiles_[t].pieces;
    for (int p = 0; p < count; ++p) {
      pieces_.push_back({static_cast<int>(t), splits * p / count, splits * (p + 1) / count});
    }
  }
  const auto cost = [&](const AttendPiece& piece) {
    return cost_of(tiles_[static_cast<std::size_t>(piece.tile)], piece.first_split, piece.end_split,
                   group);
  };
  std::sort(pieces_.begin(), pieces_.end(), [&](const AttendPiece& a, const AttendPiece& b) {
    const std::int64_t cost_a = cost(a);
    const std::int64_t cost_b = cost(b);
    if (cost_a != cost_b) return cost_a > cost_b;
    return a.tile != b.tile ? a.tile < b.tile : a.first_split < b.first_split;
  });
}

void AttendPlan::share(const AttendLimits& limits, std::int64_t most) {
  const int kv_heads = limits.layout.num_kv_heads;
  const int group = limits.group;
  std::int64_t used = 0;
  for (AttendTile& tile : tiles_) {
    const int splits = tile.num_splits();
    const std::int64_t cost = cost_of(tile, 0, splits, group);
    const std::int64_t floats =
        kv_heads * splits * attend_state_floats(limits.layout, tile.num_rows * group);
    if (cost <= most || splits == 1 || used + floats > limits.partial_floats) continue;
    tile.pieces = static_cast<int>(std::min<std::int64_t>(splits, (cost + most - 1) / most));
    tile.partial = used;
    used += floats;
    tile.counter = static_cast<int>(counters_.size());
    counters_.insert(counters_.end(), static_cast<std::size_t>(kv_heads), tile.pieces);
  }
}

}  // namespace atl::compute
