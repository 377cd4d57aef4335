// The CUDA backend's experts where several ranks share them: each has some inner columns and some
// columns of the results, of the rows of all.

#include <algorithm>

#include "compute/cuda/error.hpp"
#include "compute/cuda/operations.hpp"

namespace atl::compute::cuda {

void CudaLayers::run_shared(const Stream& stream, CudaChunk& chunk, int layer,
                            std::span<const RowBlock> blocks, ExpertPart part) {
  const CudaLayer& weights = weights_.layers[static_cast<std::size_t>(layer)];
  std::int64_t own_rows = 0;
  for (const RowBlock& block : blocks) own_rows += block.num_rows;
  std::int64_t done = 0;
  for (const RowBlock& block : blocks) {
    if (block.num_rows == 0) continue;
    const CudaMlp& mlp = weights.experts[static_cast<std::size_t>(block.local_expert)];
    const SharedBlock own{block, done, own_rows};
    if (part == ExpertPart::collect) collect_rows(stream, chunk, own);
    if (part == ExpertPart::up) shared_up(stream, chunk, mlp, block);
    if (part == ExpertPart::down) shared_down(stream, chunk, mlp, block);
    if (part == ExpertPart::write) write_rows(stream, chunk, own);
    done += block.num_rows;
  }
}

void CudaLayers::collect_rows(const Stream& stream, CudaChunk& chunk, const SharedBlock& own) {
  check(cudaMemcpyAsync(row_at(chunk.expert_rows, chunk.first_expert_row + own.done, shape_.hidden),
                        own.block.in, static_cast<std::size_t>(own.block.num_rows) * row_bytes(),
                        cudaMemcpyDeviceToDevice, stream.raw()),
        "cudaMemcpyAsync");
}

void CudaLayers::shared_up(const Stream& stream, CudaChunk& chunk, const CudaMlp& mlp,
                           const RowBlock& block) {
  const auto* in = static_cast<const std::byte*>(block.in);
  const std::int64_t at = (in - static_cast<const std::byte*>(chunk.expert_rows)) /
                          static_cast<std::int64_t>(row_bytes());
  const std::int64_t part = options_.part.expert_share.place * chunk.all_expert_rows;
  for (int first = 0; first < block.num_rows; first += work_.mlp_rows) {
    mlp_up(stream, expert_, mlp, row_at(in, first, shape_.hidden),
           std::min(work_.mlp_rows, block.num_rows - first),
           row_at(chunk.inner_rows, part + at + first, expert_.width));
  }
}

void CudaLayers::shared_down(const Stream& stream, CudaChunk& chunk, const CudaMlp& mlp,
                             const RowBlock& block) {
  const int members = options_.part.expert_share.members;
  const std::int64_t at =
      (static_cast<const std::byte*>(block.in) - static_cast<const std::byte*>(chunk.expert_rows)) /
      static_cast<std::int64_t>(row_bytes());
  for (int first = 0; first < block.num_rows; first += work_.mlp_rows) {
    MemberRows rows;
    rows.received = row_at(chunk.inner_rows, at + first, expert_.width);
    rows.members = members;
    rows.place = -1;
    rows.num_rows = std::min(work_.mlp_rows, block.num_rows - first);
    rows.width = expert_.width;
    rows.member_rows = chunk.all_expert_rows;
    join_columns(stream.raw(), dtype_, rows, work_.inner);
    mlp_down(stream, expert_, mlp, work_.inner, rows.num_rows,
             row_at(chunk.down_send, at + first, shape_.hidden / members));
  }
}

void CudaLayers::write_rows(const Stream& stream, CudaChunk& chunk, const SharedBlock& own) {
  const ExpertShare& share = options_.part.expert_share;
  MemberRows rows;
  rows.width = shape_.hidden / share.members;
  rows.received = row_at(chunk.down_recv, own.done, rows.width);
  rows.own = row_at(chunk.down_send, chunk.first_expert_row + own.done, rows.width);
  rows.members = share.members;
  rows.place = share.place;
  rows.num_rows = own.block.num_rows;
  rows.member_rows = own.own_rows;
  join_columns(stream.raw(), dtype_, rows, own.block.out);
}

}  // namespace atl::compute::cuda
