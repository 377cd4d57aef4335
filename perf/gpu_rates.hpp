#pragma once
// The measurements of the GPU benchmarks below the backend's seam: the backend's GEMMs, and the
// kernels that move rows and choose tokens.

#include <array>
#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "compute/cuda/gemm.hpp"
#include "compute/cuda/memory.hpp"
#include "compute/sampling.hpp"
#include "compute/types.hpp"

namespace atl::gpu_bench {

/// The weight matrices of one preset's layer in the backend's own GEMMs. Each product takes another
/// copy of its weights, in turn over at least `rotation_bytes` of them, so that none is still in
/// the cache from the last time, as none is in a model.
class PresetGemms {
 public:
  PresetGemms(const ModelShape& shape, DType dtype, int max_rows, std::int64_t rotation_bytes);

  static constexpr std::array<const char*, 4> names = {"qkv", "o", "up", "down"};
  /// Throws Error unless samples of the result equal float64 sums to within rounding.
  void check(std::size_t which, int rows);
  double seconds(std::size_t which, int rows, int repetitions);
  /// The same by whatever algorithm is fastest, which may sum in an order that depends on `rows`.
  double fastest_seconds(std::size_t which, int rows, int repetitions);
  /// What was chosen for so many rows, in cuBLASLt's own numbers.
  std::string algorithm(std::size_t which, int rows) const;
  /// Matrices of which no algorithm kept its rows' bits; empty: none.
  std::string row_dependent() const;
  double flops(std::size_t which, int rows) const;
  double bytes(std::size_t which, int rows) const;  ///< that must be moved at least
  int copies(std::size_t which) const { return matrices_[which].copies; }

 private:
  struct Matrix {
    int n, k;
    compute::cuda::CudaGemm::Kind kind = -1;
    int copies = 1;
    int next = 0;
  };
  std::size_t copy_bytes(const Matrix& matrix) const;
  /// Another copy each time.
  const void* next_weight(Matrix& matrix);

  DType dtype_;
  compute::cuda::Stream stream_;
  std::vector<std::byte> values_;  ///< on the host: what weights and inputs are cut from
  compute::cuda::DeviceBuffer weights_, in_, out_, workspace_;
  compute::cuda::CudaGemm gemm_;
  std::array<Matrix, 4> matrices_;
};

/// Route, pack and merge of one chunk.
class RowKernels {
 public:
  RowKernels(const ModelShape& shape, DType dtype, int tokens);

  /// Throws Error unless rows come out where routing puts them and sums are those of plain loops.
  void check();
  double seconds(int repetitions);
  /// That must be read and written at least.
  double bytes() const;

 private:
  void launch();
  float start_of_x(std::size_t i) const;

  ModelShape shape_;
  DType dtype_;
  int tokens_;
  compute::cuda::Stream stream_;
  std::vector<std::byte> rows_host_;
  std::vector<float> logits_host_;
  compute::cuda::DeviceBuffer logits_, first_of_expert_, replicas_, experts_, chosen_, weights_,
      slots_, counts_, scratch_;
  compute::cuda::DeviceBuffer rows_, packed_, x_;
};

/// The kernel that chooses tokens from rows of logits.
class SampleKernel {
 public:
  SampleKernel(int rows, int vocab, const SamplingOptions& options);

  /// Throws Error unless the tokens are those that sample_row() chooses.
  void check();
  double seconds(int repetitions);
  double bytes() const;  ///< of the logits, to be read once at least

 private:
  void launch();

  int vocab_;
  compute::cuda::Stream stream_;
  std::vector<float> logits_host_;         // [rows, vocab]
  std::vector<compute::Draw> draws_host_;  // [rows]
  compute::cuda::DeviceBuffer logits_, draws_, sampled_;
};

}  // namespace atl::gpu_bench
