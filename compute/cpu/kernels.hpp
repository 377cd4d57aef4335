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

/// cos and sin of position * frequencies[i], by the sum of two angles, in double:
/// position = 64 * coarse + fine. Tables hold [index][cos: dims/2][sin: dims/2]; the factor of the
/// Rope is in the coarse one.
struct RopeTables {
  const double* coarse = nullptr;
  const double* fine = nullptr;
  int dims = 0;
};

/// Normalises and rotates q (in place) and k, and appends k and v to the cache.
struct RopeArgs {
  KvLayout layout;
  RopeTables tables;
  QkNorm norm = QkNorm::none;
  bool norm_after = false;  ///< by per_head: rotated first
  const float* q_norm = nullptr;
  const float* k_norm = nullptr;
  float eps = 0;
  float value_scale = 1;
  void* qkv = nullptr;                      ///< [rows, q, k and v of own heads]
  void* kv = nullptr;                       ///< the layer's pages
  const std::int32_t* positions = nullptr;  ///< [rows]
  const std::int32_t* pages = nullptr;      ///< [rows], page of each row
  /// [rows][2]: means of the squares of q and of k over all heads, for whole_row where other ranks
  /// have some of them. Null: all are in the row.
  const float* mean_squares = nullptr;
};

/// Of latent attention: rotates the last part of each head of q (in place), multiplies queries by
/// the temperature, normalises the latent, and appends it and the rotated key to the cache.
struct LatentRopeArgs {
  KvLayout layout;
  RopeTables tables;
  QueryTemperature temperature;
  const float* norm = nullptr;
  float eps = 0;
  void* q = nullptr;  ///< first row's; rows are `q_stride` elements apart
  std::int64_t q_stride = 0;
  const void* latents = nullptr;  ///< first row's latent and key; `latent_row` apart
  std::int64_t latent_row = 0;
  void* kv = nullptr;                       ///< the layer's pages
  const std::int32_t* positions = nullptr;  ///< [rows]
  const std::int32_t* pages = nullptr;      ///< [rows], page of each row
};

/// Keys are attended to in splits of so many positions, which are merged in order.
inline constexpr int split_tokens = 512;

/// Attention of consecutive rows of one sequence, for the query heads of one kv_head. Where the
/// layout is of latents, these are the keys of all heads, and their first value_dim elements the
/// values.
struct AttendArgs {
  KvLayout layout;
  const void* qkv = nullptr;  ///< first row's q; rows are `qkv_stride` elements apart
  std::int64_t qkv_stride = 0;
  void* out = nullptr;                  ///< first row; [rows, heads * head_dim]
  const void* kv = nullptr;             ///< the layer's pages
  const std::int32_t* pages = nullptr;  ///< of the sequence
  int num_rows = 0;
  int first_position = 0;
  int kv_head = 0;     ///< of the layout's, with the query heads from `first_head` on
  int first_head = 0;  ///< likewise
  int num_heads = 0;
  float scale = 1;               ///< of q . k
  int window = 0;                ///< keys that a query sees, its own included; 0: all
  const float* sinks = nullptr;  ///< [own query heads], see AttentionKind::sinks
  float* scratch = nullptr;      ///< attend_scratch_floats() of them, aligned to 64 bytes
  /// Where several tasks share the splits of these rows: [splits][attend_state_floats()], all of
  /// the rows' splits. Null: one task does all.
  float* partial = nullptr;
  int first_split = 0;  ///< of this task, which `partial` gets
  int end_split = 0;
};

/// For `num_queries` = rows * heads per kv_head: floats of what one split leaves, and of scratch
/// that attend() needs.
std::int64_t attend_state_floats(const KvLayout& layout, int num_queries);
std::int64_t attend_scratch_floats(const KvLayout& layout, int num_queries);

/// Most rows of a panel_gemm(), and what it needs of scratch for them.
inline constexpr int panel_gemm_rows = 128;
inline constexpr std::int64_t panel_scratch_floats = 128 * (512 + 16);
/// Most of PanelTask::slice_bytes.
inline constexpr int max_panel_slice_bytes = 32768;
/// Most columns that a panel of any instruction set has.
inline constexpr int max_panel_columns = 32;

/// c = rows * panels, in float32. A row's bits depend on nothing but the row and the weights.
struct PanelTask {
  const void* const* rows = nullptr;  ///< [num_rows], k elements of T each
  int num_rows = 0;                   ///< at most panel_gemm_rows
  int k = 0;
  const void* panels = nullptr;  ///< [num_panels]
  int num_panels = 0;
  float* c = nullptr;  ///< [num_rows][c_stride], whole panels are written
  std::int64_t c_stride = 0;
  float* scratch = nullptr;                     ///< [panel_scratch_floats]
  int slice_bytes = max_panel_slice_bytes / 2;  ///< of a panel, read by all rows in turn: for L1
  Coding coding{};                  ///< where panels hold codes, of elements that are rounded
  DType rounded = DType::bfloat16;  ///< to this
  bool special = false;             ///< as pack_codes() says of any of them
};

/// Most groups of experts.
inline constexpr int max_router_groups = 64;

/// One token's experts.
struct ChooseArgs {
  const Router* router = nullptr;
  bool normalise = true;
  int num_experts = 0;
  int top_k = 0;
  float* logits = nullptr;            ///< [num_experts], overwritten by the scores
  float* choices = nullptr;           ///< [num_experts], scratch
  const float* logit_bias = nullptr;  ///< [num_experts]; null: none
  const float* offsets = nullptr;     ///< [num_experts], added to scores for choosing; null: none
  const float* balance = nullptr;     ///< [num_experts], likewise, of ChoiceOffsets; null: none
  float* given_up = nullptr;          ///< with balance: see Backend::save_choices
  std::int32_t* experts = nullptr;    ///< [top_k], chosen, or given to weights_of
  float* weights = nullptr;           ///< [top_k]
};

struct Kernels {
  const char* isa = "";
  /// out[r] = round(x[r] / rms(x[r]) * weight), rows of `width`.
  void (*rms_norm)(const float* x, const float* weight, float eps, void* out, std::int64_t rows,
                   int width);
  /// out[h] = the sum of squares of head h of a row, in float32.
  void (*head_squares)(const void* row, int num_heads, int head_dim, float* out);
  /// x += y.
  void (*add)(float* x, const void* y, std::int64_t count);
  /// x += round(the sum of `members` rows in their order), added up in float32, all [width]; the
  /// row of member m begins m * stride elements after `rows`, but that of `place` is `own`. Rows
  /// are float32, or of the type.
  void (*add_sum)(float* x, const void* rows, std::int64_t stride, const void* own, int place,
                  int members, int width);
  void (*add_rounded_sum)(float* x, const void* rows, std::int64_t stride, const void* own,
                          int place, int members, int width);
  /// out = round(gelu_tanh(up)).
  void (*gelu)(const float* up, void* out, std::int64_t count);
  /// out = round(x / rms(x) * weight), rows of T in place, `stride` elements apart.
  void (*norm_in_place)(void* x, const float* weight, float eps, std::int64_t rows, int width,
                        std::int64_t stride);
  /// out = round(silu(gate) * up); `up` may be `out`.
  void (*swiglu)(const float* gate, const void* up, void* out, std::int64_t count);
  void (*to_float)(const void* in, float* out, std::int64_t count);
  void (*from_float)(const float* in, void* out, std::int64_t count);
  /// out = round((up' + 1) * gate' * sigmoid(alpha * gate')), see Activation::swiglu_clamped; `up`
  /// may be `out`.
  void (*swiglu_clamped)(const float* gate, const void* up, void* out, std::int64_t count,
                         float limit, float alpha);
  /// x += y, float32.
  void (*add_floats)(float* x, const float* y, std::int64_t count);
  /// x *= factor.
  void (*scale)(float* x, float factor, std::int64_t count);
  void (*rope)(const RopeArgs& args, std::int64_t begin, std::int64_t end);
  void (*latent_rope)(const LatentRopeArgs& args, std::int64_t begin, std::int64_t end);
  /// Keys [count][head_dim] of up to panel_tokens consecutive tokens, the first one a panel's
  /// first, into a panel of KvLayout.
  void (*pack_keys)(const void* keys, int count, int head_dim, void* panel);
  /// Without `partial` the outputs of the rows; else the states of some splits.
  void (*attend)(const AttendArgs& args);
  /// The outputs of the rows from the states of all their splits, which it overwrites.
  void (*merge_splits)(const AttendArgs& args);
  /// As Router says, in falling order of what was chosen by. Always chooses top_k different
  /// experts: where a logit is NaN or infinite all weights may be NaN.
  void (*choose)(const ChooseArgs& args);
  /// The same for experts that are given: their weights, in their order, bit by bit as choose gives
  /// them to experts that it chooses in this order.
  void (*weights_of)(const ChooseArgs& args);
  /// x += round(sum_j weights[j] * rows[slots[j]]), one row of `width`.
  void (*merge)(float* x, const void* rows, const std::int32_t* slots, const float* weights,
                int top_k, int width);
  /// out = round(sum_j weights[j] * rows[slots[j]]), one row of `width`.
  void (*fold)(void* out, const void* rows, const std::int32_t* slots, const float* weights,
               int top_k, int width);
  /// log softmax(logits)[target]; NaN where a logit is not finite.
  float (*log_prob)(const float* logits, std::int64_t count, std::int64_t target);
  /// Weights [n, k] of T in panels: [n / panel_columns][k][panel_columns] elements, zeros beyond n
  /// and k, which are rounded up to multiples of panel_columns and panel_step; the order inside is
  /// the kernels' own.
  int panel_columns = 0;
  int panel_step = 0;
  /// out = panel number `panel` of row-major weight [n, k].
  void (*pack_panel)(const void* weight, int n, int k, int panel, void* out);
  /// out = panel number `panel` of a weight kept as codes, of coded_panel_bytes(). Returns whether
  /// numbers or scales are such that they need more care: NaN, or scales that are not finite or
  /// huge.
  bool (*pack_codes)(const HostTensor& weight, int panel, void* out);
  void (*panel_gemm)(const PanelTask& task);
};

/// Bytes of a panel that holds codes: group after group, each its columns' scales and then codes, k
/// after k; groups as of k rounded up to a multiple of panel_step.
inline std::int64_t coded_panel_bytes(const Coding& coding, int k, const Kernels& kernels) {
  const std::int64_t step = kernels.panel_step;
  const std::int64_t padded = (k + step - 1) / step * step;
  const std::int64_t codes = padded * kernels.panel_columns / (coding.code == Code::fp8 ? 1 : 2);
  return kernels.panel_columns * coding.groups(k) * coding.scale_bytes() + codes;
}

/// Kernels whose T is `dtype`.
const Kernels& kernels_for(DType dtype, CpuIsa isa);

// One table per translation unit: kernels/<isa>.cpp.
const Kernels& kernels_avx2(DType dtype);
const Kernels& kernels_avx512(DType dtype);
const Kernels& kernels_avx512_bf16(DType dtype);

}  // namespace atl::compute
