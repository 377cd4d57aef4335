// The CUDA backend's experts: which of their rows are computed together.

#include <algorithm>

#include "compute/cuda/error.hpp"
#include "compute/cuda/operations.hpp"
#include "compute/cuda/row_runs.hpp"
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

void CudaLayers::move_runs(const Stream& stream, std::span<const Run> runs, void* together,
                           bool back) const {
  auto* at = static_cast<std::byte*>(together);
  const auto bytes_of = [&](const Run& run) {
    return static_cast<std::size_t>(run.rows) * row_bytes();
  };
  if (!switches_.gather_kernel) {
    for (const Run& run : runs) {
      check(cudaMemcpyAsync(back ? run.out : at, back ? at : run.in, bytes_of(run),
                            cudaMemcpyDeviceToDevice, stream.raw()),
            "cudaMemcpyAsync");
      at += bytes_of(run);
    }
    return;
  }
  while (!runs.empty()) {
    const std::size_t count = std::min<std::size_t>(runs.size(), RowRuns::most);
    RowRuns some;
    some.count = static_cast<int>(count);
    std::int64_t rows = 0;
    for (std::size_t r = 0; r < count; ++r) {
      some.rows[r] = back ? runs[r].out : runs[r].in;
      some.first[r] = rows;
      rows += runs[r].rows;
    }
    some.first[count] = rows;
    if (back) {
      scatter_rows(stream.raw(), dtype_, some, at, shape_.hidden);
    } else {
      gather_rows(stream.raw(), dtype_, some, at, shape_.hidden);
    }
    at += static_cast<std::size_t>(rows) * row_bytes();
    runs = runs.subspan(count);
  }
}

void CudaLayers::run_gathered(const ExpertWork& work, std::span<const Run> runs,
                              std::int64_t rows) {
  if (work.up()) move_runs(work.stream, runs, work_.gathered, /*back=*/false);
  run_tile(work, work_.gathered, rows, work_.results);
  if (work.down()) move_runs(work.stream, runs, work_.results, /*back=*/true);
}

/// In bytes of device memory: rows go there and back twice, read and written; weights are read once
/// more for the shorter runs, less what these compute in that time.
bool CudaLayers::gathering_pays(std::int64_t rows) const {
  if (!switches_.gather_by_cost || runs_.size() < 2 || rows > work_.mlp_rows) return false;
  constexpr std::int64_t operations_per_byte = 256;  // of a device, about
  const auto longest = std::max_element(runs_.begin(), runs_.end(),
                                        [](const Run& a, const Run& b) { return a.rows < b.rows; });
  const std::int64_t matrices = shape_.activation == Activation::swiglu ? 3 : 2;
  const std::int64_t weights =
      matrices * shape_.hidden * expert_.width * static_cast<std::int64_t>(size_of(dtype_));
  const std::int64_t shorter = std::min(rows - longest->rows, operations_per_byte);
  const auto moved = 4 * rows * static_cast<std::int64_t>(row_bytes());
  return moved < weights / operations_per_byte * (operations_per_byte - shorter);
}

/// A GEMM of few rows takes as long as reading the weights, and one of some hundred does not fill
/// the device: short runs are gathered, as many as there is memory for, and long ones computed
/// where they lie, or with the short ones where that pays.
void CudaLayers::run_expert(const ExpertWork& work) {
  constexpr std::int64_t long_run = 1024;
  std::int64_t all = 0;
  for (const Run& run : runs_) all += run.rows;
  if (gathering_pays(all)) return run_gathered(work, runs_, all);
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
