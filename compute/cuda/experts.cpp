// The CUDA backend's experts: which of their rows are computed together.

#include <algorithm>

#include "compute/cuda/error.hpp"
#include "compute/cuda/operations.hpp"
#include "compute/error.hpp"

namespace atl::compute::cuda {

/// Joins blocks of one expert that are adjacent: where a rank has one expert, all rows from other
/// ranks are, and only its own lie elsewhere.
void CudaLayers::collect_runs(std::span<const RowBlock> blocks) {
  runs_.clear();
  for (const RowBlock& block : blocks) {
    if (block.num_rows == 0) continue;
    auto* in = static_cast<std::byte*>(const_cast<void*>(block.in));
    auto* out = static_cast<std::byte*>(block.out);
    const auto before = std::find_if(runs_.begin(), runs_.end(), [&](const Run& run) {
      const auto bytes = static_cast<std::size_t>(run.rows) * row_bytes();
      return run.in + bytes == in && run.out + bytes == out;
    });
    if (before != runs_.end()) {
      before->rows += block.num_rows;
    } else {
      runs_.push_back({in, out, block.num_rows});
    }
  }
}

void CudaLayers::run_tile(const ExpertWork& work, const void* in, std::int64_t rows, void* out) {
  const bool all = work.part == ExpertPart::all;
  void* const inner = all ? work_.inner : work.inner;
  if (work.up()) mlp_up(work.stream, expert_, work.mlp, in, rows, inner);
  if (work.down()) mlp_down(work.stream, expert_, work.mlp, inner, rows, out);
  if (all) return;
  const auto bytes = static_cast<std::size_t>(rows * expert_.width) * size_of(dtype_);
  work.inner += (bytes + Arena::alignment - 1) / Arena::alignment * Arena::alignment;
}

void CudaLayers::run_gathered(const ExpertWork& work, std::span<const Run> runs,
                              std::int64_t rows) {
  const auto move = [&](void* to, const void* from, std::int64_t count) {
    check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(count) * row_bytes(),
                          cudaMemcpyDeviceToDevice, work.stream.raw()),
          "cudaMemcpyAsync");
  };
  auto* at = static_cast<std::byte*>(work_.gathered);
  for (const Run& run : runs) {
    if (work.up()) move(at, run.in, run.rows);
    at += static_cast<std::size_t>(run.rows) * row_bytes();
  }
  run_tile(work, work_.gathered, rows, work_.results);
  at = static_cast<std::byte*>(work_.results);
  for (const Run& run : runs) {
    if (work.down()) move(run.out, at, run.rows);
    at += static_cast<std::size_t>(run.rows) * row_bytes();
  }
}

/// A GEMM of few rows takes as long as reading the weights, and one of some hundred does not fill
/// the device: short runs are gathered, as many as there is memory for, and long ones computed
/// where they lie.
void CudaLayers::run_expert(const ExpertWork& work) {
  constexpr std::int64_t long_run = 1024;
  const auto longs = std::partition(runs_.begin(), runs_.end(),
                                    [](const Run& run) { return run.rows < long_run; });
  for (auto begin = runs_.begin(); begin != runs_.end();) {
    std::int64_t rows = 0;
    auto end = begin;
    while (end < longs && rows + end->rows <= work_.mlp_rows) rows += (end++)->rows;
    if (end - begin > 1) {
      run_gathered(work, {begin, end}, rows);
      begin = end;
      continue;
    }
    for (std::int64_t first = 0; first < begin->rows; first += work_.mlp_rows) {
      const auto offset = static_cast<std::size_t>(first) * row_bytes();
      run_tile(work, begin->in + offset,
               std::min<std::int64_t>(work_.mlp_rows, begin->rows - first), begin->out + offset);
    }
    ++begin;
  }
}

Event CudaLayers::experts(CudaChunk& chunk, int layer, std::span<const RowBlock> blocks,
                          ExpertPart part) {
  require(part == ExpertPart::all || options_.split_experts || options_.part.expert_share.shared(),
          "internal: this backend was not set up to run an expert's parts apart");
  Op op(queue_, "experts", layer, &chunk.order);
  const Stream& stream = op.begin(StreamId::compute);
  if (options_.part.expert_share.shared()) {
    run_shared(stream, chunk, layer, blocks, part);
    return op.close();
  }
  if (part == ExpertPart::collect || part == ExpertPart::write) return op.close();
  const CudaLayer& weights = weights_.layers[static_cast<std::size_t>(layer)];
  auto* inner = static_cast<std::byte*>(chunk.inner.data());
  while (!blocks.empty()) {
    const std::int32_t expert = blocks.front().local_expert;
    const auto end = std::find_if(blocks.begin(), blocks.end(), [expert](const RowBlock& block) {
      return block.local_expert != expert;
    });
    const auto count = static_cast<std::size_t>(end - blocks.begin());
    collect_runs(blocks.first(count));
    run_expert({stream, weights.experts[static_cast<std::size_t>(expert)], part, inner});
    blocks = blocks.subspan(count);
  }
  return op.close();
}

}  // namespace atl::compute::cuda
