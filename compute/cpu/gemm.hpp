#pragma once
// The CPU GEMMs: C [M, N] = A [M, K] * W^T with packed weights, rows independent of M: a row's
// result does not depend on M, on its place, or on the number of threads.

#include <algorithm>
#include <compare>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "compute/aligned_buffer.hpp"
#include "compute/cpu/isa.hpp"
#include "compute/types.hpp"

namespace atl::compute {

/// Rows of a GEMM tile; buffers that GEMMs read or write hold a multiple of it.
inline constexpr int tile_rows = 128;

/// `rows` rounded up to whole tiles, at least one.
inline std::int64_t whole_tiles(std::int64_t rows) {
  return std::max<std::int64_t>(1, (rows + tile_rows - 1) / tile_rows) * tile_rows;
}

/// Most rows that a GEMM wants at once, see Gemm::rows_at_once().
inline constexpr int most_rows_at_once = 4 * tile_rows;

/// One weight matrix [N, K], packed for its GEMM.
class PackedWeight {
 public:
  /// What a GEMM keeps beside the bytes.
  class Extra {
   public:
    virtual ~Extra() = default;
  };

  PackedWeight() = default;
  PackedWeight(int n, int k, std::size_t bytes) : n_(n), k_(k), buffer_(bytes) {}

  int n() const { return n_; }
  int k() const { return k_; }
  void* data() const { return buffer_.data(); }
  std::int64_t bytes() const { return buffer_.bytes(); }
  bool empty() const { return n_ == 0; }

  std::unique_ptr<Extra> extra;
  Coding coding;                    ///< where it is kept as codes, and what its elements
  DType rounded = DType::bfloat16;  ///< are rounded to

 private:
  int n_ = 0;
  int k_ = 0;
  AlignedBuffer buffer_;
};

/// What becomes of float32 sums; "rounded" is to the activations' type.
enum class Finish : std::uint8_t {
  float32,  ///< as they are
  rounded,
  add,             ///< out += rounded sums; `out` is float32, the residual stream
  gelu,            ///< out = rounded(gelu_tanh(sums))
  swiglu,          ///< out = rounded(silu(sums of the gate) * rounded sums)
  swiglu_clamped,  ///< the same by Activation::swiglu_clamped
};

/// Float32 numbers that are added to sums before anything becomes of them, and those of
/// Activation::swiglu_clamped.
struct Extras {
  const float* bias = nullptr;  ///< [n]; null: none
  const float* gate_bias = nullptr;
  float clamp_limit = 0;
  float clamp_alpha = 0;
};

/// Rows that may lie anywhere times one weight: out[i] = finish(in[i] * weight^T).
struct Product {
  const PackedWeight* weight = nullptr;
  const PackedWeight* gate = nullptr;  ///< for swiglu and swiglu_clamped, of the same shape
  Finish finish = Finish::rounded;     ///< but float32
  int rows = 0;                        ///< 1 to tile_rows
  const void* const* in = nullptr;     ///< [rows], k elements each
  void* const* out = nullptr;          ///< [rows], n elements each
  Extras extras;                       ///< for a GEMM that adds_biases()
};

/// A weight [n, k] and what becomes of its products' sums.
struct GemmUse {
  int n = 0;
  int k = 0;
  Finish finish = Finish::rounded;
  Coding coding{};

  auto operator<=>(const GemmUse&) const = default;
};

/// Packs weights and multiplies. Every call must come from the same thread (or be ordered), with
/// the OpenMP team size set to the number of threads given to make_gemm().
class Gemm {
 public:
  virtual ~Gemm() = default;

  /// Packs row-major `weight` [n, k] of the activations' type.
  virtual PackedWeight pack(const void* weight, int n, int k) = 0;

  /// Bytes of such a weight, packed.
  virtual std::int64_t packed_bytes(int n, int k) const = 0;

  /// The same of codes, which our own GEMMs take alone.
  virtual PackedWeight pack_codes(const HostTensor& weight);
  virtual std::int64_t bytes_of_codes(int n, int k, const Coding& coding) const;

  /// Creates everything run() needs for this weight (of swiglu, either) and finish.
  virtual void prepare(const PackedWeight& weight, Finish finish) = 0;

  /// out [rows, n] = finish(in [rows, k] * weight^T), one of float32, rounded and add. `in` and,
  /// unless float32, `out` must have room for rows rounded up to tile_rows; what the rows beyond
  /// hold is unspecified. `bias` [n] as in Extras.
  virtual void run(const PackedWeight& weight, const void* in, std::int64_t rows, void* out,
                   Finish finish, const float* bias) = 0;
  void run(const PackedWeight& weight, const void* in, std::int64_t rows, void* out,
           Finish finish) {
    run(weight, in, rows, out, finish, nullptr);
  }

  /// Whether biases, and with them Finish::swiglu_clamped, are followed.
  virtual bool adds_biases() const { return false; }

  /// All products, in any order and at once.
  virtual void run(std::span<const Product> products) = 0;

  /// Rows, whole tiles, that products of one run() are best made of, where there are many; at most
  /// most_rows_at_once.
  virtual int rows_at_once() const = 0;

  virtual std::string description() const = 0;
  /// Bytes of the buffers that all weights share.
  virtual std::int64_t buffer_bytes() const = 0;
  /// What they will be once prepare() was called for weights like these.
  virtual std::int64_t buffer_bytes(std::span<const GemmUse> uses) const = 0;
};

/// oneDNN's for bfloat16 with AMX, else our own.
std::unique_ptr<Gemm> make_gemm(DType dtype, int num_threads, CpuIsa isa = cpu_isa());

/// Whether a model's GEMMs are our own whatever the CPU has: it adds biases, keeps weights as
/// codes, or attends to latents, whose products of single heads are small.
bool wants_own_gemms(const ModelShape& shape);
/// The GEMMs of a model.
std::unique_ptr<Gemm> make_gemm(const ModelShape& shape, DType dtype, int num_threads,
                                CpuIsa isa = cpu_isa());

}  // namespace atl::compute
