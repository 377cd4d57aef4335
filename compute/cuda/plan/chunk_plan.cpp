#include "compute/cuda/plan/chunk_plan.hpp"

#include <algorithm>

#include "compute/cuda/plan/kv.hpp"

namespace atl::compute::cuda {

namespace {

/// Of expanded keys and values of all heads at once, but for those of one head.
constexpr std::int64_t expanded_bytes = std::int64_t{256} << 20;

/// Kinds of attention that layers of this rank have.
std::vector<AttendedHeads> kinds_of(const BackendOptions& options) {
  std::vector<AttendedHeads> kinds;
  for (const int layer : layers_of_kinds(options)) {
    kinds.push_back(layer < 0 ? AttendedHeads() : attended_heads(options, layer));
  }
  return kinds;
}

int attention_rows(const BackendOptions& options) {
  return static_cast<int>(options.most_attention_rows());
}

}  // namespace

std::vector<int> layers_of_kinds(const BackendOptions& options) {
  const ModelShape& shape = options.shape;
  if (shape.attentions.empty()) return {options.part.first_layer};
  std::vector<int> layers(shape.attentions.size(), -1);
  for (int layer = options.part.end_layer - 1; layer >= options.part.first_layer; --layer) {
    layers[shape.attention_of[static_cast<std::size_t>(layer)]] = layer;
  }
  return layers;
}

LatentHeads::LatentHeads(const BackendOptions& options) {
  const ModelShape& shape = options.shape;
  const int own = own_heads(shape, options.part.attention).num_heads;
  positions = (num_positions(options) + key_block - 1) / key_block * key_block;
  const std::int64_t of_head = std::int64_t{std::max(positions, 1)} *
                               (shape.head_dim + shape.values_dim()) *
                               static_cast<std::int64_t>(size_of(options.dtype));
  at_once = 1;
  for (int heads = 2; heads <= own; ++heads) {
    if (own % heads == 0 && heads * of_head <= expanded_bytes) at_once = heads;
  }
  expanded = AttendedHeads(shape);
  expanded.num_heads = expanded.num_kv_heads = at_once;
  absorbed = expanded;
  absorbed.num_heads = own;
  absorbed.num_kv_heads = 1;
  absorbed.head_dim = shape.latent.width();
  absorbed.value_dim = shape.latent.keys;
}

ChunkPlan::ChunkPlan(const BackendOptions& options) : options_(options) {
  if (options.shape.latent.used()) {
    latent_ = LatentHeads(options);
  } else {
    kinds_ = kinds_of(options);
  }
}

AttendWork ChunkPlan::add(const AttendedHeads& heads, bool by_groups,
                          std::span<const Segment> segments, std::int64_t workspace_rows) {
  plan_.by_groups = by_groups;
  plan_attention(heads, segments, multiprocessors_, workspace_rows, plan_);
  AttendWork work;
  work.by_groups = by_groups;
  work.first_tile = std::ssize(tiles);
  work.first_merge = std::ssize(merges);
  work.num_wide = plan_.num_wide;
  work.num_narrow = plan_.num_narrow;
  work.num_merges = static_cast<int>(plan_.merges.size());
  tiles.insert(tiles.end(), plan_.tiles.begin(), plan_.tiles.end());
  merges.insert(merges.end(), plan_.merges.begin(), plan_.merges.end());
  return work;
}

void ChunkPlan::cut(std::span<const Segment> segments, int multiprocessors, bool by_wgmma) {
  multiprocessors_ = multiprocessors;
  tiles.clear();
  merges.clear();
  of_kind.clear();
  if (options_.shape.latent.used()) return cut_latents(segments);
  for (const AttendedHeads& heads : kinds_) {
    if (heads.num_heads == 0) {
      of_kind.emplace_back();
      continue;
    }
    of_kind.push_back(add(heads, by_wgmma && wgmma_attends(heads, options_.dtype), segments,
                          attention_workspace_rows(heads, attention_rows(options_))));
  }
}

/// Warpgroups have no kernel for latents. Lists stay as short as those of one launch: what one has
/// taken of the workspace's rows, the next ones do without, although they run one after the other.
void ChunkPlan::cut_latents(std::span<const Segment> segments) {
  expanded.clear();
  absorbed.clear();
  generated.clear();
  const auto of_prompt = [](const Segment& segment) {
    return std::clamp(segment.prompt - segment.first_position, 0, segment.num_rows);
  };
  std::int64_t left = attention_workspace_rows(latent_.expanded, attention_rows(options_));
  for (std::size_t s = 0; s < segments.size(); ++s) {
    Segment segment = segments[s];
    segment.num_rows = of_prompt(segment);
    if (segment.num_rows == 0) continue;
    segment.first_row = 0;  // of the work
    AttendWork work = add(latent_.expanded, false, {&segment, 1}, left);
    left -= plan_.workspace_rows();
    work.first_row = segments[s].first_row;
    work.num_rows = segment.num_rows;
    work.segment = static_cast<int>(s);
    work.context = segment.first_position + segment.num_rows;
    expanded.push_back(work);
  }
  left = attention_workspace_rows(latent_.absorbed, attention_rows(options_));
  some_.assign(segments.begin(), segments.end());
  int first = 0;  // of those at hand
  const auto attend = [&] {
    const int count = static_cast<int>(generated.size()) - first;
    if (count == 0) return;
    AttendWork work = add(latent_.absorbed, false, some_, left);
    left -= plan_.workspace_rows();
    work.first_row = first;
    work.num_rows = count;
    absorbed.push_back(work);
    first += count;
    for (Segment& segment : some_) segment.num_rows = 0;
  };
  for (Segment& segment : some_) segment.num_rows = 0;
  for (std::size_t s = 0; s < segments.size(); ++s) {
    const Segment& whole = segments[s];
    for (int i = of_prompt(whole); i < whole.num_rows; ++i) {
      const int at = static_cast<int>(generated.size()) - first;
      if (at == latent_rows_at_once) attend();
      Segment& some = some_[s];
      if (some.num_rows++ == 0) {
        some.first_row = static_cast<int>(generated.size()) - first;
        some.first_position = whole.first_position + i;
      }
      generated.push_back(whole.first_row + i);
    }
  }
  attend();
}

std::int64_t ChunkPlan::most_tiles(const BackendOptions& options) {
  const int rows = attention_rows(options);
  if (options.shape.latent.used()) {
    const LatentHeads latent(options);
    return max_attention_tiles(latent.expanded, rows) + max_attention_tiles(latent.absorbed, rows);
  }
  std::int64_t most = 0;
  for (const AttendedHeads& heads : kinds_of(options)) {
    if (heads.num_heads > 0) most += max_attention_tiles(heads, rows);
  }
  return most;
}

std::int64_t ChunkPlan::most_merges(const BackendOptions& options) {
  const std::int64_t rows = options.most_attention_rows();
  if (options.shape.latent.used()) return rows;
  return rows * std::max<std::int64_t>(std::ssize(options.shape.attentions), 1);
}

std::int64_t ChunkPlan::workspace_floats(const BackendOptions& options) {
  const int rows = attention_rows(options);
  if (options.shape.latent.used()) {
    const LatentHeads latent(options);
    return std::max(attention_workspace_floats(latent.expanded, rows),
                    attention_workspace_floats(latent.absorbed, rows));
  }
  std::int64_t most = 0;
  for (const AttendedHeads& heads : kinds_of(options)) {
    if (heads.num_heads > 0) most = std::max(most, attention_workspace_floats(heads, rows));
  }
  return most;
}

std::int64_t ChunkPlan::totals_floats(const BackendOptions& options) {
  return takes_wgmma(options) ? attention_totals_floats(AttendedHeads(options.shape)) : 0;
}

bool ChunkPlan::takes_wgmma(const BackendOptions& options) {
  if (options.shape.latent.used()) return false;
  const std::vector<AttendedHeads> kinds = kinds_of(options);
  return std::any_of(kinds.begin(), kinds.end(), [&](const AttendedHeads& heads) {
    return heads.num_heads > 0 && wgmma_attends(heads, options.dtype);
  });
}

}  // namespace atl::compute::cuda
