#pragma once
// GEMMs of oneDNN on operands of the activations' type: for AMX, whose tiles are the one thing that
// it multiplies by and our panels do not.
//
// Rows run in tiles of at most 128; the rows of a last tile are rounded up to a class, so that a
// handful of primitives per shape, created before the first pass, serve every M.

#include <array>
#include <dnnl.hpp>
#include <map>

#include "compute/cpu/gemm.hpp"
#include "compute/cpu/kernels.hpp"

namespace atl::compute {

/// Numbers of rows for which primitives exist.
inline constexpr std::array<int, 16> row_classes = {1,  2,  3,  4,  6,  8,  12,  16,
                                                    24, 32, 48, 64, 80, 96, 112, 128};

/// The smallest class of at least `rows` rows (1 <= rows <= tile_rows).
int row_class_of(int rows);

/// Threads that oneDNN multiplies with at most: from 16 on it may split the sum over k among them,
/// by the number of rows (max_nthr_k in its brgemm_matmul_utils.cpp).
inline constexpr int most_one_dnn_threads = 15;

class OneDnnGemm final : public Gemm {
 public:
  /// bfloat16 or float32; the operations beside the products are those of `isa`.
  OneDnnGemm(DType dtype, int num_threads, CpuIsa isa);
  ~OneDnnGemm() override;

  /// Keeps oneDNN from instruction sets newer than AMX with bfloat16, before anything is asked of
  /// it; false where it has not got that.
  static bool limit_to_amx();

  PackedWeight pack(const void* weight, int n, int k) override;
  std::int64_t packed_bytes(int n, int k) const override;
  void prepare(const PackedWeight& weight, Finish finish) override;
  using Gemm::run;
  void run(const PackedWeight& weight, const void* in, std::int64_t rows, void* out, Finish finish,
           const float* bias) override;
  void run(std::span<const Product> products) override;
  int rows_at_once() const override { return tile_rows; }  // products run one by one
  std::string description() const override;
  std::int64_t buffer_bytes() const override { return buffers().total(); }
  std::int64_t buffer_bytes(std::span<const GemmUse> uses) const override;

 private:
  /// Tells oneDNN, on this thread, how many threads it has.
  void use_threads() const;

  struct Primitive;
  struct Shape;
  class Weight;
  struct Buffers {
    std::int64_t in = 0;
    std::int64_t out = 0;
    std::int64_t sums = 0;
    std::int64_t scratchpad = 0;
    std::int64_t total() const { return in + out + sums + scratchpad; }
  };

  /// oneDNN's favourite layout of a weight.
  dnnl::memory::desc layout_of(int n, int k) const;
  Buffers buffers() const;
  /// `buffers`, wide enough for this too.
  Buffers widened(Buffers buffers, const GemmUse& use) const;
  std::unique_ptr<Primitive> create(const PackedWeight& weight, bool rounded, int rows);
  /// `rows` is a class.
  void multiply(const PackedWeight& weight, const void* in, int rows, void* out, bool rounded);
  void multiply_floats(const PackedWeight& weight, const void* in, std::int64_t rows, float* out);
  /// Rows of in_ to product.out.
  void finish(const Product& product);

  DType dtype_;
  int num_threads_;
  const Kernels& kernels_;
  dnnl::engine engine_;
  dnnl::stream stream_;
  std::map<std::pair<int, int>, std::unique_ptr<Shape>> shapes_;  // by (n, k)
  AlignedBuffer in_;                                              // [tile, widest k]
  AlignedBuffer out_;                                             // [tile, widest n]
  AlignedBuffer sums_;        // [tile, widest n], float32, for activations
  AlignedBuffer scratchpad_;  // shared by all primitives
};

}  // namespace atl::compute
