#pragma once
// The CPU GEMMs: C [M, N] = A [M, K] * W^T with packed weights, rows independent of M.
//
// Rows run in tiles of at most 128; the rows of a last tile are rounded up to a class, so that a
// handful of oneDNN primitives per shape, created before the first pass, serve every M. A row's
// result does not depend on M, on its place in a tile, or on the number of threads.

#include <array>
#include <cstdint>
#include <dnnl.hpp>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "compute/cpu/kernels.hpp"
#include "compute/cpu/memory.hpp"
#include "compute/types.hpp"

namespace atl::compute {

/// Rows of a GEMM tile; buffers that GEMMs read or write hold a multiple of it.
inline constexpr int tile_rows = 128;
/// `rows`, at least one, rounded up to whole tiles.
constexpr std::int64_t whole_tiles(std::int64_t rows) {
  return std::max<std::int64_t>(1, (rows + tile_rows - 1) / tile_rows) * tile_rows;
}

/// Numbers of rows for which primitives exist.
inline constexpr std::array<int, 16> row_classes = {1,  2,  3,  4,  6,  8,  12,  16,
                                                    24, 32, 48, 64, 80, 96, 112, 128};

/// The smallest class of at least `rows` rows (1 <= rows <= tile_rows).
int row_class_of(int rows);

/// How GEMMs are computed.
enum class GemmPath : std::uint8_t {
  native,         ///< oneDNN, operands of the activations' type
  float32,        ///< oneDNN, operands converted to float32
  float32_panels  ///< our kernel in float32: oneDNN's rows depend on M on CPUs without AVX-512
};

class Gemm;

/// One weight matrix [N, K], packed for its GEMM.
class PackedWeight {
 public:
  int k() const { return k_; }
  int n() const { return n_; }
  std::int64_t bytes() const { return buffer_.bytes(); }
  bool empty() const { return n_ == 0; }

 private:
  friend class Gemm;
  struct Shape;
  int k_ = 0;
  int n_ = 0;
  AlignedBuffer buffer_;
  dnnl::memory memory_;
  Shape* shape_ = nullptr;  // owned by Gemm
};

/// Packs weights and multiplies. Every call must come from the same thread (or be ordered), with
/// the OpenMP team size set to the number of threads given here.
class Gemm {
 public:
  struct Primitive;

  /// Element type of a result: the activations' type, or float32.
  enum class Output : std::uint8_t { activation, float32 };

  Gemm(DType dtype, int num_threads);
  ~Gemm();

  /// Packs row-major `weight` [n, k] of the activations' type.
  PackedWeight pack(const void* weight, int n, int k);
  /// Bytes of such a weight, packed.
  std::int64_t packed_bytes(int n, int k) const;

  /// Creates everything run() needs for this weight and output.
  void prepare(const PackedWeight& weight, Output output);

  /// c [rows, n] = a [rows, k] * weight^T. `a` and `c` must have room for rows rounded up to
  /// tile_rows; what the rows beyond hold is unspecified. `c` is rounded once if not float32.
  void run(const PackedWeight& weight, const void* a, std::int64_t rows, void* c, Output output);

  /// As run() with float32 output, but touches no row of `c` beyond `rows`.
  void run_exact(const PackedWeight& weight, const void* a, std::int64_t rows, float* c);

  GemmPath path() const { return path_; }
  CpuIsa isa() const { return isa_; }
  std::string description() const;
  /// Bytes of the buffers that all weights share.
  struct Buffers {
    std::int64_t a = 0;           ///< converted operands of one tile
    std::int64_t c = 0;           ///< float32 results of one tile
    std::int64_t scratchpad = 0;  ///< oneDNN's
    std::int64_t total() const { return a + c + scratchpad; }
  };
  Buffers buffers() const { return {a_.bytes(), c_.bytes(), scratchpad_.bytes()}; }
  /// `buffers`, wide enough for a weight [n, k] and this output too: what prepare() makes sure of.
  Buffers widened(Buffers buffers, int n, int k, Output output) const;

 private:
  /// Whether oneDNN writes rounded results; else every primitive writes float32.
  bool rounds_itself() const { return path_ == GemmPath::native && dtype_ != DType::float32; }
  void run_tile(const PackedWeight& weight, const void* a, int rows, int row_class, void* c,
                Output output);
  void multiply(const PackedWeight& weight, const void* a, int rows, int row_class, void* c,
                Output output);
  PackedWeight::Shape& shape_of(int n, int k);
  /// oneDNN's favourite layout of a weight.
  dnnl::memory::desc layout_of(int n, int k) const;
  std::unique_ptr<Primitive> create(const PackedWeight& weight, Output output, int rows);

  DType dtype_;
  int num_threads_;
  CpuIsa isa_;
  GemmPath path_;
  const Kernels& kernels_;
  dnnl::engine engine_;
  dnnl::stream stream_;
  std::map<std::pair<int, int>, std::unique_ptr<PackedWeight::Shape>> shapes_;
  AlignedBuffer a_;           // converted operands of one tile
  AlignedBuffer c_;           // float32 results of one tile
  AlignedBuffer scratchpad_;  // shared by all primitives
};

}  // namespace atl::compute
