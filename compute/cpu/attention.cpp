// The CPU backend's attention, in its parts.

#include <atomic>

#include "compute/cpu/operations.hpp"

namespace atl::compute {

void CpuLayers::attention(CpuChunk& chunk, int layer, AttentionPart part) {
  const CpuLayer& weights = layers_[static_cast<std::size_t>(layer)];
  const bool all = part == AttentionPart::all;
  if (all || part == AttentionPart::project) project(chunk, weights);
  if (all || part == AttentionPart::attend) {
    rotate_and_store(chunk, layer);
    attend(chunk, layer);
  }
  if (all || part == AttentionPart::output) output(chunk, weights);
}

void CpuLayers::project(CpuChunk& chunk, const CpuLayer& weights) {
  norm(chunk, weights.attention_norm);
  gemm_->run(weights.qkv, work_.h.data(), chunk.num_tokens(), chunk.memory.qkv.data(),
             Finish::rounded);
}

void CpuLayers::output(CpuChunk& chunk, const CpuLayer& weights) {
  gemm_->run(weights.o, chunk.memory.context.data(), chunk.num_tokens(), chunk.memory.x.data(),
             Finish::add);
}

void CpuLayers::rotate_and_store(CpuChunk& chunk, int layer) {
  for (const Segment& segment : chunk.segments) {
    for (int i = 0; i < segment.num_rows; ++i) {
      const int position = segment.first_position + i;
      const auto at = static_cast<std::size_t>(segment.first_row + i);
      positions_[at] = position;
      pages_[at] = segment.pages[position / options_.page_tokens];
    }
  }
  const CpuLayer& weights = layers_[static_cast<std::size_t>(layer)];
  RopeArgs args;
  args.layout = layout_;
  args.tables = {work_.rope_coarse.as<double>(), work_.rope_fine.as<double>()};
  args.norm = shape_.qk_norm;
  args.q_norm = weights.q_norm.as<float>();
  args.k_norm = weights.k_norm.as<float>();
  args.eps = shape_.rms_eps;
  args.qkv = chunk.memory.qkv.data();
  args.kv = kv_.layers[static_cast<std::size_t>(layer)].data();
  args.positions = positions_.data();
  args.pages = pages_.data();
  parallel_ranges(
      options_.num_threads, chunk.num_tokens(), grain_rows(std::int64_t{4} * shape_.q_width()),
      [&](std::int64_t begin, std::int64_t end, int) { kernels_.rope(args, begin, end); });
}

void CpuLayers::attend(CpuChunk& chunk, int layer) {
  attend_plan_.cut(chunk.segments, work_.attend);
  const int num_kv_heads = shape_.num_kv_heads;
  const int qkv_width = shape_.q_width() + 2 * shape_.kv_width();
  const auto run = [&](std::int64_t index, int thread) {
    const AttendPiece& piece =
        attend_plan_.pieces()[static_cast<std::size_t>(index / num_kv_heads)];
    const AttendTile& tile = attend_plan_.tiles()[static_cast<std::size_t>(piece.tile)];
    const std::int64_t first_row = tile.segment->first_row + tile.first_row;
    AttendArgs args;
    args.layout = layout_;
    args.qkv = row(chunk.memory.qkv, first_row, qkv_width);
    args.qkv_stride = qkv_width;
    args.out = row(chunk.memory.context, first_row, shape_.q_width());
    args.kv = kv_.layers[static_cast<std::size_t>(layer)].data();
    args.pages = tile.segment->pages;
    args.num_rows = tile.num_rows;
    args.first_position = tile.segment->first_position + tile.first_row;
    args.kv_head = static_cast<int>(index % num_kv_heads);
    args.scratch = work_.attend_scratch.as<float>() + thread * work_.scratch_floats;
    if (tile.pieces > 1) {
      const int queries = tile.num_rows * (shape_.num_heads / num_kv_heads);
      args.partial = work_.attend_partial.as<float>() + tile.partial +
                     args.kv_head * tile.num_splits() * attend_state_floats(layout_, queries);
      args.first_split = piece.first_split;
      args.end_split = piece.end_split;
    }
    kernels_.attend(args);
    if (tile.pieces == 1) return;
    // Whoever ends last has all states before its eyes, and merges them in their order.
    int& left = attend_plan_.counters()[static_cast<std::size_t>(tile.counter + args.kv_head)];
    if (std::atomic_ref(left).fetch_sub(1) == 1) kernels_.merge_splits(args);
  };
  const auto count = static_cast<std::int64_t>(attend_plan_.pieces().size()) * num_kv_heads;
  parallel_tasks(options_.num_threads, count, run);
}

}  // namespace atl::compute
