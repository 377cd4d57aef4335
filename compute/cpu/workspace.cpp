#include "compute/cpu/workspace.hpp"

#include <algorithm>
#include <cmath>

#include "compute/cpu/gemm.hpp"
#include "compute/cpu/kernels.hpp"
#include "compute/cpu/latent.hpp"

namespace atl::compute {

namespace {

/// log-prob tiles hold whole rows of logits; at most about 32 MiB of them.
int vocab_rows_for(int vocab) {
  const std::int64_t rows = (std::int64_t{8} << 20) / std::max(vocab, 1);
  return static_cast<int>(std::clamp<std::int64_t>(rows, 1, tile_rows));
}

/// Angles of index * step, cos and sin times `factor`; nothing where the table was only counted.
void fill(AlignedBuffer& table, const Rope& rope, int step, double factor) {
  const int half = rope.dims / 2;
  auto* values = table.as<double>();
  const std::int64_t count =
      table.bytes() / (std::int64_t{2} * half * static_cast<std::int64_t>(sizeof(double)));
  for (std::int64_t index = 0; index < count; ++index) {
    for (int i = 0; i < half; ++i) {
      const double angle =
          static_cast<double>(index) * step * rope.frequencies[static_cast<std::size_t>(i)];
      values[index * 2 * half + i] = factor * std::cos(angle);
      values[index * 2 * half + half + i] = factor * std::sin(angle);
    }
  }
}

/// The first layer of each kind of attention.
std::vector<int> layers_of_kinds(const ModelShape& shape) {
  if (shape.attentions.empty()) return {0};
  std::vector<int> layers;
  for (std::size_t kind = 0; kind < shape.attentions.size(); ++kind) {
    const auto found = std::find(shape.attention_of.begin(), shape.attention_of.end(), kind);
    const bool used = found != shape.attention_of.end();
    layers.push_back(used ? static_cast<int>(found - shape.attention_of.begin()) : 0);
  }
  return layers;
}

}  // namespace

CpuWorkspace::CpuWorkspace(const BackendOptions& options, HostArena& arena) {
  const ModelShape& shape = options.shape;
  const auto element = static_cast<std::int64_t>(size_of(options.dtype));
  const std::int64_t tokens = whole_tiles(options.max_chunk_tokens);
  const std::int64_t widest =
      std::max({shape.intermediate, shape.moe_intermediate, shape.shared_intermediate});
  const auto rows_of = [&](std::int64_t rows, std::int64_t width) {
    return arena.buffer(rows * width * element);
  };
  const auto floats_of = [&](std::int64_t rows, std::int64_t width) {
    return arena.buffer(rows * width * static_cast<std::int64_t>(sizeof(float)));
  };
  h = rows_of(tokens, shape.hidden);
  take_shared(options, arena);
  inner = rows_of(most_rows_at_once, widest);
  vocab_rows = vocab_rows_for(shape.vocab);
  vocab = floats_of(vocab_rows, shape.vocab);

  take_attention(options, arena);
  if (shape.has_shared_expert() && shape.shared_gate) {
    shared_out = rows_of(most_rows_at_once, shape.hidden);
    shared_weights = floats_of(tokens, 1);
  }
  choices = floats_of(options.num_threads, shape.num_experts);
  take_ropes(options, arena);
}

void CpuWorkspace::take_attention(const BackendOptions& options, HostArena& arena) {
  const auto floats_of = [&](std::int64_t rows, std::int64_t width) {
    return arena.buffer(rows * width * static_cast<std::int64_t>(sizeof(float)));
  };
  if (options.shape.latent.used()) return take_latents(options, arena);
  std::int64_t partial = 0;
  for (const int layer : layers_of_kinds(options.shape)) {
    attend.push_back(attend_limits_of(options, layer));
    const AttendLimits& limits = attend.back();
    const int queries = limits.tile_rows * limits.group;
    scratch_floats =
        std::max(scratch_floats, (attend_scratch_floats(limits.layout, queries) + 15) / 16 * 16);
    partial = std::max(partial, limits.partial_floats);
  }
  attend_scratch = floats_of(options.num_threads, scratch_floats);
  attend_partial = floats_of(1, partial);
}

void CpuWorkspace::take_ropes(const BackendOptions& options, HostArena& arena) {
  constexpr int fine = 64;  // positions
  const ModelShape& shape = options.shape;
  for (std::size_t i = 0; i < shape.num_ropes(); ++i) {
    const Rope rope = shape.rope(i);
    const auto angles = [&](std::int64_t count) {
      return arena.buffer(count * rope.dims * static_cast<std::int64_t>(sizeof(double)));
    };
    CpuRope& tables = ropes.emplace_back();
    tables.dims = rope.dims;
    tables.coarse = angles(shape.max_positions / fine + 1);
    tables.fine = angles(fine);
    fill(tables.coarse, rope, fine, rope.factor);
    fill(tables.fine, rope, 1, 1);
  }
}

void CpuWorkspace::take_latents(const BackendOptions& options, HostArena& arena) {
  const ModelShape& shape = options.shape;
  const OwnHeads own = own_heads(shape, options.part.attention);
  const KvLayout layout = kv_layout_of(options, 0);
  const auto elements = [&](std::int64_t count) {
    return arena.buffer(count * static_cast<std::int64_t>(size_of(options.dtype)));
  };
  const std::int64_t rows = whole_tiles(options.most_attention_rows());
  if (shape.latent.queries > 0) {
    latent.latents = elements(rows * (shape.latent.queries + shape.latent.width()));
  }
  // A page of their own: as many positions as any prompt has. Short ones leave room for several
  // heads.
  const std::int64_t held = options.num_pages * options.page_tokens;
  latent.positions = whole_panels(std::min<std::int64_t>(shape.max_positions, held));
  constexpr std::int64_t wanted = 16384;  // positions, of all heads at once
  latent.heads_at_once = static_cast<int>(std::clamp<std::int64_t>(
      wanted / std::max<std::int64_t>(latent.positions, 1), 1, own.num_heads));
  latent.expanded =
      elements(latent.heads_at_once * latent.positions * (layout.head_dim + layout.value_stride));
  latent.rows = elements(std::int64_t{most_rows_at_once} * latent.heads_at_once * layout.head_dim);
  const std::int64_t pairs = std::int64_t{latent_block_rows} * own.num_heads;
  latent.queries = elements(pairs * shape.latent.width());
  latent.outputs = elements(pairs * shape.latent.keys);
  const std::int64_t expanded = attend_scratch_floats(expanded_layout(layout, 0), latent_tile_rows);
  const std::int64_t absorbed =
      attend_scratch_floats(absorbed_layout(layout, shape), latent_head_group);
  latent.scratch_floats = (std::max(expanded, absorbed) + 15) / 16 * 16;
  latent.scratch = arena.buffer(options.num_threads * latent.scratch_floats *
                                static_cast<std::int64_t>(sizeof(float)));
}

void CpuWorkspace::take_shared(const BackendOptions& options, HostArena& arena) {
  const ModelShape& shape = options.shape;
  const AttentionShare& share = options.part.attention;
  if (!share.shared()) return;
  const std::int64_t all = options.most_attention_rows();
  if (!is_sum(share.output)) {
    const std::int64_t rows = share.output == OutputCut::rows ? options.max_chunk_tokens : all;
    heads = arena.buffer(whole_tiles(rows) * shape.heads_width() *
                         static_cast<std::int64_t>(size_of(options.dtype)));
  }
  if (shape.qk_norm == QkNorm::whole_row) {
    mean_squares = arena.buffer(all * 2 * static_cast<std::int64_t>(sizeof(float)));
  }
}

}  // namespace atl::compute
