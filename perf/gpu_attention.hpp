#pragma once
// Attention of the CUDA backend alone: no projections, one launch over paged keys and values.

#include <cstddef>
#include <vector>

#include "compute/cuda/kernels.hpp"
#include "compute/cuda/memory.hpp"
#include "compute/types.hpp"

namespace atl::gpu_bench {

/// Random numbers again and again over as many elements as are wanted, on the device; `shift` moves
/// where they begin. On the host any of them can be asked for.
class RepeatedValues {
 public:
  RepeatedValues(std::size_t count, std::size_t shift, DType dtype);
  double at(std::size_t i) const;
  void* data() const { return device_.data(); }

 private:
  DType dtype_;
  std::vector<std::byte> period_;
  compute::cuda::DeviceBuffer device_;
};

/// `sequences` of `context` tokens; the last `rows` positions of each are queried, as in a chunk of
/// prefill or, with one row, a step of decode.
class AttentionKernel {
 public:
  AttentionKernel(const ModelShape& shape, DType dtype, int sequences, int context, int rows);

  /// Throws Error unless sampled rows equal the plain formula in float64 to within rounding.
  void check();
  double seconds(int repetitions);
  double flops() const;
  double bytes() const;  ///< keys, values, queries and results, each once

 private:
  void launch();
  void plan();
  void check_row(int sequence, int row, int head);

  ModelShape shape_;
  DType dtype_;
  int sequences_, context_, rows_;
  int pages_each_;
  compute::cuda::Stream stream_;
  RepeatedValues keys_, values_, queries_;
  compute::cuda::DeviceBuffer out_, positions_, sequence_of_row_, pages_, tiles_, merges_,
      workspace_, totals_;
  compute::cuda::AttentionArgs args_;
};

}  // namespace atl::gpu_bench
