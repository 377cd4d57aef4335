#pragma once
// The CUDA GEMMs: out [rows, n] = in [rows, k] * weight [n, k]^T by cuBLASLt, float32 accumulation.
//
// A row's result does not depend on how many rows come with it, nor an element's on how many
// columns of the product are computed here. cuBLASLt chooses algorithms by both numbers, so this is
// arranged at start: of the algorithms it proposes for each class of row counts, the fastest is
// taken whose elements have the same bits, on test data, as those of one reference algorithm for
// this k and output, which is found with a fixed number of columns. Algorithms that split the sum
// over k are never asked for. One that is refused later, for a row count that was not tried, is
// replaced by another one for that call, if possible by one with the same bits.

#include <cublasLt.h>

#include <array>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "compute/cuda/memory.hpp"
#include "compute/cuda/plan/workspace.hpp"
#include "compute/cuda/stream.hpp"
#include "compute/types.hpp"

namespace atl::compute::cuda {

/// Largest row counts of the classes; more rows use the last class.
inline constexpr std::array<int, 11> row_buckets = {1,   8,   16,   32,   64,  128,
                                                    256, 512, 1024, 2048, 4096};
std::size_t bucket_of(std::int64_t rows);

class CudaGemm {
 public:
  /// How results are stored: rounded to the activations' type, as float32, or as
  /// round(gelu_tanh(float32)) in the activations' type.
  enum class Output : std::uint8_t { activation, float32, gelu };

  /// `workspace` is device memory of gemm_workspace_bytes, used by one stream.
  CudaGemm(DType dtype, void* workspace);
  ~CudaGemm();

  /// One kind of GEMM; plans are kept for each.
  using Kind = int;
  /// `weight` is any matrix [n, k] of this kind, to try algorithms with; `max_rows` is the largest
  /// row count expected. Where ranks of some layouts have parts of the product's columns,
  /// `whole_n` are all of them: an element then has the same bits in all parts.
  Kind add(int n, int k, Output output, int max_rows, const void* weight, int whole_n = 0);

  /// Chooses the algorithms of all kinds; waits for the device. `stream` is the one that run()
  /// gets.
  void prepare(const Stream& stream);

  /// Says that this kind will not be run: what is told of all kinds leaves it out.
  void leave_out(Kind kind) { kinds_[static_cast<std::size_t>(kind)].left_out = true; }

  /// Whether fused gelu of this k errs no more than rounding the exact values would, nearly. The
  /// same on all ranks whose devices and libraries are alike, whatever they hold.
  bool gelu_is_accurate(int k, const Stream& stream);
  /// Whether the kind works and its elements have the bits that they have in every layout. After
  /// prepare(); only gelu may not work at all.
  bool keeps_bits(Kind kind) const {
    const KindState& state = kinds_[static_cast<std::size_t>(kind)];
    return !state.algos.empty() && !state.row_dependent;
  }
  /// Says of a kind that its bits depend on the layout, for a reason that lies outside.
  void tell_dependent(Kind kind) { kinds_[static_cast<std::size_t>(kind)].row_dependent = true; }

  /// `in` and `out` are at multiples of whole rows from an aligned address.
  void run(const Stream& stream, Kind kind, const void* weight, const void* in, std::int64_t rows,
           void* out);

  /// E.g. "cuBLASLt 13.1.0".
  static std::string library();
  /// Kinds for which no algorithm had the reference's bits whatever the number of rows, e.g.
  /// "4096 x 1024"; empty: none.
  std::string row_dependent_kinds() const;
  /// Runs whose algorithm was refused and replaced; and those of them whose rows may have other
  /// bits, since none of the chosen algorithms was taken.
  std::int64_t num_replaced() const { return num_replaced_; }
  std::int64_t num_replaced_untried() const { return num_replaced_untried_; }
  /// What a kind that works was given for so many rows.
  const cublasLtMatmulAlgo_t& algorithm(Kind kind, std::int64_t rows) const {
    return kinds_[static_cast<std::size_t>(kind)].algos[bucket_of(rows)];
  }

 private:
  struct DestroyHandle {
    void operator()(cublasLtHandle_t handle) const { cublasLtDestroy(handle); }
  };
  struct DestroyDesc {
    void operator()(cublasLtMatmulDesc_t desc) const { cublasLtMatmulDescDestroy(desc); }
  };
  struct DestroyLayout {
    void operator()(cublasLtMatrixLayout_t layout) const { cublasLtMatrixLayoutDestroy(layout); }
  };
  using Layout = std::unique_ptr<cublasLtMatrixLayoutOpaque_t, DestroyLayout>;
  struct KindState {
    int n = 0;
    int k = 0;
    int whole_n = 0;  // 0: no layout has other columns
    Output output = Output::activation;
    int max_rows = 0;
    const void* weight = nullptr;
    std::unique_ptr<cublasLtMatmulDescOpaque_t, DestroyDesc> desc;
    Layout weight_layout, in_layout, out_layout;
    std::vector<cublasLtMatmulAlgo_t> algos;  // [row_buckets], once prepared
    bool row_dependent = false;
    bool left_out = false;
    std::size_t out_bytes(DType dtype) const {
      return output == Output::float32 ? 4 : size_of(dtype);
    }
  };
  class Trial;
  struct Reference;

  Layout make_layout(cudaDataType_t type, int rows, std::int64_t cols) const;
  std::vector<cublasLtMatmulAlgo_t> candidates(const KindState& kind, int rows) const;
  KindState describe(int n, int k, Output output, int max_rows, const void* weight) const;
  Reference make_reference(int k, Output output, const Stream& stream) const;
  /// Made when it is asked for first.
  const Reference& reference_of(int k, Output output, const Stream& stream);
  /// Whether results of `kind` lie as an algorithm for `other` takes them.
  bool writes_as_aligned(const KindState& kind, const KindState& other) const;
  /// Of those proposed the first whose elements have the bits that they must have, or else the
  /// first that works, with `kind.row_dependent`; null: none does.
  const cublasLtMatmulAlgo_t* usual_algorithm(KindState& kind, Trial& trial,
                                              std::span<const cublasLtMatmulAlgo_t> proposed) const;
  void choose(KindState& kind, Trial& trial, const Reference& reference) const;
  /// Leaves nothing of earlier GEMMs in the device's caches.
  void flush(const Stream& stream) const;
  cublasStatus_t launch(const Stream& stream, const KindState& kind, const void* weight,
                        const cublasLtMatmulAlgo_t& algo, const void* in, std::int64_t rows,
                        void* out) const;
  /// Where the algorithm for `rows` was refused with `code`: tries all others.
  void run_replaced(const Stream& stream, const KindState& kind, const void* weight, const void* in,
                    std::int64_t rows, void* out, cublasStatus_t code);

  DType dtype_;
  void* workspace_;
  std::unique_ptr<cublasLtContext, DestroyHandle> handle_;
  std::vector<KindState> kinds_;
  std::vector<std::unique_ptr<Reference>> references_;
  DeviceBuffer flushed_;  // while algorithms are chosen
  std::int64_t num_replaced_ = 0;
  std::int64_t num_replaced_untried_ = 0;
};

}  // namespace atl::compute::cuda
