#pragma once
// Test data on which algorithms of GEMMs are compared, before the first pass.

#include <array>
#include <optional>
#include <vector>

#include "compute/cuda/gemm.hpp"
#include "compute/cuda/memory.hpp"

namespace atl::compute::cuda {

/// The algorithm whose bits all GEMMs of one k and output have, whatever their columns and rows.
/// It is found with a fixed number of columns, rows and made-up weights: what it is depends on the
/// device, cuBLASLt, k, output and type alone, and so is the same on all ranks of every layout.
struct CudaGemm::Reference {
  KindState kind;
  std::optional<cublasLtMatmulAlgo_t> algo;  ///< none: none works at all
  bool keeps_bits = false;                   ///< rows have the same bits whatever their number
};

/// Test data of one kind of GEMM and the bits that its results must have.
///
/// Even rows cancel: sums are zero but for the rounding of their partial sums, so that another
/// order of summation shows also in results of 16 bits; second halves of weights repeat the first
/// ones, and of such rows they are negated. Odd rows are ordinary: their sums are about 1, where
/// another GELU shows.
class CudaGemm::Trial {
 public:
  /// Rows of test data that differ; beyond them they repeat, so that any row's true bits are known.
  static constexpr int base_rows = 64;
  /// Rows with which a reference is found.
  static constexpr int reference_rows = 128;
  /// The reference's columns: enough for a product of 4096 rows to fill a device.
  static constexpr int reference_columns = 1024;

  /// `largest`: how many rows there may be, where memory is left for them. Where there is none for
  /// made-up weights, the kind's own are taken with ordinary rows: of so many columns some differ
  /// in 16 bits too.
  Trial(const CudaGemm& gemm, const KindState& kind, const Stream& stream, int largest);

  int rows() const { return rows_; }
  /// Runs `algo` on `rows` test rows from `first` on; false where it cannot, whatever the reason:
  /// another one may. Throws where the device is lost.
  bool run(const cublasLtMatmulAlgo_t& algo, int first, int rows);
  /// Takes what was run last as the bits that rows must have.
  void keep() { expected_ = fetch(0, base_rows); }
  /// Takes those that the reference makes of the same rows and weights, some columns at a time.
  void tell(const Reference& reference);
  bool is_told() const { return !expected_.empty(); }
  /// Whether a run of these rows has the bits that it must have.
  bool agrees(const cublasLtMatmulAlgo_t& algo, int first, int rows);
  /// The same of rows of these numbers, and from other places on.
  bool keeps_bits(const cublasLtMatmulAlgo_t& algo, int least_rows, int most_rows);
  /// Milliseconds of a run, the median of a few; infinity where it cannot.
  float time(const cublasLtMatmulAlgo_t& algo, int rows);
  /// Results of the base rows of what was run last that are ordinary, as float32.
  std::vector<float> ordinary_values();

 private:
  void allocate();
  void fill();
  bool launch(const KindState& kind, const std::byte* weight, const cublasLtMatmulAlgo_t& algo,
              int first, int rows);
  std::vector<std::byte> fetch(int first, int rows);

  const CudaGemm& gemm_;
  const KindState& kind_;
  const Stream& stream_;
  DeviceBuffer own_weight_;
  const std::byte* weight_ = nullptr;
  int rows_;
  std::size_t in_row_bytes_, out_row_bytes_;
  DeviceBuffer in_, out_;
  std::vector<std::byte> expected_;  // [base_rows, n]
};

}  // namespace atl::compute::cuda
