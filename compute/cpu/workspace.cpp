#include "compute/cpu/workspace.hpp"

#include <algorithm>
#include <cmath>

#include "compute/cpu/gemm.hpp"
#include "compute/cpu/kernels.hpp"

namespace atl::compute {

namespace {

/// log-prob tiles hold whole rows of logits; at most about 32 MiB of them.
int vocab_rows_for(int vocab) {
  const std::int64_t rows = (std::int64_t{8} << 20) / std::max(vocab, 1);
  return static_cast<int>(std::clamp<std::int64_t>(rows, 1, tile_rows));
}

/// Angles of index * step; nothing where the table was only counted.
void fill(AlignedBuffer& table, const ModelShape& shape, int step) {
  const int half = shape.head_dim / 2;
  auto* values = table.as<double>();
  const std::int64_t count =
      table.bytes() / (std::int64_t{2} * half * static_cast<std::int64_t>(sizeof(double)));
  for (std::int64_t index = 0; index < count; ++index) {
    for (int i = 0; i < half; ++i) {
      const double frequency = std::pow(shape.rope_theta, -2.0 * i / shape.head_dim);
      const double angle = static_cast<double>(index) * step * frequency;
      values[index * 2 * half + i] = std::cos(angle);
      values[index * 2 * half + half + i] = std::sin(angle);
    }
  }
}

}  // namespace

CpuWorkspace::CpuWorkspace(const BackendOptions& options, HostArena& arena) {
  const ModelShape& shape = options.shape;
  const auto element = static_cast<std::int64_t>(size_of(options.dtype));
  const std::int64_t tokens = whole_tiles(options.max_chunk_tokens);
  const std::int64_t widest = std::max(shape.intermediate, shape.moe_intermediate);
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

  attend = attend_limits_of(options);
  const int queries = attend.tile_rows * attend.group;
  scratch_floats = (attend_scratch_floats(attend.layout, queries) + 15) / 16 * 16;
  attend_scratch = floats_of(options.num_threads, scratch_floats);
  attend_partial = floats_of(1, attend.partial_floats);

  constexpr int fine = 64;  // positions
  const auto angles = [&](std::int64_t count) {
    return arena.buffer(count * shape.head_dim * static_cast<std::int64_t>(sizeof(double)));
  };
  rope_coarse = angles(shape.max_positions / fine + 1);
  rope_fine = angles(fine);
  fill(rope_coarse, shape, fine);
  fill(rope_fine, shape, 1);
}

void CpuWorkspace::take_shared(const BackendOptions& options, HostArena& arena) {
  const ModelShape& shape = options.shape;
  const AttentionShare& share = options.part.attention;
  if (!share.shared()) return;
  const std::int64_t all = options.most_attention_rows();
  if (!is_sum(share.output)) {
    const std::int64_t rows = share.output == OutputCut::rows ? options.max_chunk_tokens : all;
    heads = arena.buffer(whole_tiles(rows) * shape.q_width() *
                         static_cast<std::int64_t>(size_of(options.dtype)));
  }
  if (shape.qk_norm == QkNorm::whole_row) {
    mean_squares = arena.buffer(all * 2 * static_cast<std::int64_t>(sizeof(float)));
  }
}

}  // namespace atl::compute
