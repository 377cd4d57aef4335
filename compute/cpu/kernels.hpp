#pragma once
// The CPU kernels: everything but the GEMMs, compiled once per instruction set.
//
// Kernels are serial and work on ranges of rows; the backend splits rows over threads. No result
// depends on how rows were split. Pointers named `void*` point to elements of the table's type T
// (see kernels_for); arithmetic is float32, and results are rounded once, when they are stored.

#include <cstdint>

#include "compute/cpu/isa.hpp"
#include "compute/cpu/kv.hpp"
#include "compute/types.hpp"

namespace atl::compute {

/// Largest head_dim the kernels take (any even number up to it).
inline constexpr int max_head_dim = 512;

/// cos and sin of position * theta^(-2i/head_dim), by the sum of two angles, in double:
/// position = 64 * coarse + fine. Tables hold [index][cos: head_dim/2][sin: head_dim/2].
struct RopeTables {
  const double* coarse = nullptr;
  const double* fine = nullptr;
};

/// Normalises and rotates q (in place) and k, and appends k and v to the cache.
struct RopeArgs {
  KvLayout layout;
  RopeTables tables;
  QkNorm norm = QkNorm::none;
  const float* q_norm = nullptr;
  const float* k_norm = nullptr;
  float eps = 0;
  void* qkv = nullptr;                      ///< [rows, (heads + 2 kv_heads) * head_dim]
  void* kv = nullptr;                       ///< the layer's pages
  const std::int32_t* positions = nullptr;  ///< [rows]
  const std::int32_t* pages = nullptr;      ///< [rows], page of each row
};

/// Attention of consecutive rows of one sequence, for the query heads of one kv_head.
struct AttendArgs {
  KvLayout layout;
  const void* qkv = nullptr;  ///< first row's q; rows are `qkv_stride` elements apart
  std::int64_t qkv_stride = 0;
  void* out = nullptr;                  ///< first row; [rows, heads * head_dim]
  const void* kv = nullptr;             ///< the layer's pages
  const std::int32_t* pages = nullptr;  ///< of the sequence
  int num_rows = 0;
  int first_position = 0;
  int kv_head = 0;
  float* scratch = nullptr;  ///< attend_scratch_floats() of them, aligned to 64 bytes
};

/// Floats of scratch that attend() needs for `num_queries` = rows * heads per kv_head.
std::int64_t attend_scratch_floats(const KvLayout& layout, int num_queries);

struct Kernels {
  const char* isa = "";
  /// out[r] = round(x[r] / rms(x[r]) * weight), rows of `width`.
  void (*rms_norm)(const void* x, const float* weight, float eps, void* out, std::int64_t rows,
                   int width);
  /// x = round(x + y).
  void (*add)(void* x, const void* y, std::int64_t count);
  /// out = round(gelu_tanh(up)).
  void (*gelu)(const float* up, void* out, std::int64_t count);
  /// out = round(silu(gate) * up); `up` may be `out`.
  void (*swiglu)(const float* gate, const void* up, void* out, std::int64_t count);
  void (*to_float)(const void* in, float* out, std::int64_t count);
  void (*from_float)(const float* in, void* out, std::int64_t count);
  void (*rope)(const RopeArgs& args, std::int64_t begin, std::int64_t end);
  void (*attend)(const AttendArgs& args);
  /// Softmax over logits[num_experts] (overwritten by the probabilities), then the top_k largest in
  /// falling order, ties to the lower index; `renormalise` makes the chosen weights sum to 1.
  /// Always chooses top_k different experts: where a logit is NaN or infinite all weights may be
  /// NaN.
  void (*top_k)(float* logits, int num_experts, int top_k, bool renormalise, std::int32_t* experts,
                float* weights);
  /// x = round(x + round(sum_j weights[j] * rows[slots[j]])), one row of `width`.
  void (*merge)(void* x, const void* rows, const std::int32_t* slots, const float* weights,
                int top_k, int width);
  /// log softmax(logits)[target]; NaN where a logit is not finite.
  float (*log_prob)(const float* logits, std::int64_t count, std::int64_t target);
  /// c[rows, n] = a[rows, k] * panels, all float32, where panels are [n / 16][k][16], zero-padded;
  /// only columns of panels [begin, end) are written.
  void (*panel_gemm)(const float* a, const float* panels, float* c, int rows, int k, int n,
                     int begin, int end);
};

/// Kernels whose T is `dtype`.
const Kernels& kernels_for(DType dtype, CpuIsa isa);

// One table per translation unit: kernels/<isa>.cpp.
const Kernels& kernels_avx2(DType dtype);
const Kernels& kernels_avx512(DType dtype);
const Kernels& kernels_avx512_bf16(DType dtype);

}  // namespace atl::compute
