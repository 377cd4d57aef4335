#pragma once
// The CUDA kernels as the backend launches them: everything but the GEMMs.
//
// Every function enqueues on `stream` and returns; nothing here allocates, synchronises or reads
// device memory on the host. All pointers are device pointers unless said otherwise; `void*` points
// to elements of `dtype` (bfloat16 or float16; float32 for checking). Arithmetic is float32, and
// results are rounded once, when they are stored. No row's result depends on how many other rows
// there are. A failed launch throws Error.

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>

#include "compute/cuda/plan/attention_plan.hpp"
#include "compute/cuda/plan/check_shape.hpp"
#include "compute/cuda/plan/kv.hpp"
#include "compute/sampling.hpp"
#include "compute/types.hpp"

namespace atl::compute::cuda {

/// Whether the kernels were compiled for the current device: cudaErrorNoKernelImageForDevice where
/// not.
cudaError_t find_kernels();
/// The architectures they were compiled for, as CMake names them, e.g. "90a" or "80/90a".
std::string built_architectures();

/// Where rows of a chunk belong: its segments as the kernels read them, in device memory.
struct RowMap {
  const std::int32_t* position = nullptr;  ///< [T], of each row in its sequence
  const std::int32_t* sequence = nullptr;  ///< [T], segment of each row
  const std::int32_t* pages = nullptr;     ///< [segments, max_pages], page ids of each segment
  int max_pages = 0;
};

// x is the residual stream, in float32.

/// x [T, H] = table[tokens] [T, H].
void embed(cudaStream_t stream, DType dtype, const void* table, const std::int32_t* tokens,
           float* x, int num_tokens, int hidden);

/// out[i] = round(x[rows ? rows[i] : i] / rms * weight); x, out [.., H]; weight float32 [H].
void rms_norm(cudaStream_t stream, DType dtype, const float* x, const std::int32_t* rows,
              const float* weight, float eps, void* out, int num_rows, int hidden);

/// x += y (both [T, H]), and then, where `weight` is given, out = RMSNorm(x) * weight.
void add_rms_norm(cudaStream_t stream, DType dtype, float* x, const void* y, const float* weight,
                  float eps, void* out, int num_rows, int hidden);

/// out [R, I] = round(gelu_tanh(up)); up float32 [R, I].
void gelu(cudaStream_t stream, DType dtype, const float* up, void* out, std::int64_t count);
/// out [R, I] = round(silu(gate) * up); gate float32, up `dtype`; `out` may be `up`.
void swiglu(cudaStream_t stream, DType dtype, const float* gate, const void* up, void* out,
            std::int64_t count);

/// Normalises (see QkNorm) and rotates q in place and k, and stores k and v into their pages.
/// qkv [T, (heads + 2 kv_heads) * head_dim]. `angles` [max_positions, head_dim]: cosines, then
/// sines, of position * theta^(-2i/head_dim) as float32 rounded from double.
struct RopeArgs {
  KvPages kv;
  RowMap map;
  int num_heads = 0;
  int num_rows = 0;
  QkNorm norm = QkNorm::none;
  const float* q_norm = nullptr;
  const float* k_norm = nullptr;
  float eps = 0;
  const float* angles = nullptr;
  void* qkv = nullptr;
};
void rope_and_store(cudaStream_t stream, DType dtype, const RopeArgs& args);

/// Causal attention over the pages: out [T, heads * head_dim] for q in qkv (rows `qkv_stride`
/// elements apart), softmax in float32, scaled by 1/sqrt(head_dim). The work is listed by
/// plan_attention (attention_plan.hpp), whose lists the caller copies to the device.
/// Where head_dim is a multiple of 8, rows of qkv, of out and of pages begin at multiples of 16
/// bytes.
struct AttentionArgs {
  KvPages kv;
  RowMap map;
  int num_heads = 0;
  int num_rows = 0;
  const void* qkv = nullptr;
  std::int64_t qkv_stride = 0;
  void* out = nullptr;
  const AttentionTile* tiles = nullptr;  ///< device memory: [num_wide], then [num_narrow]
  int num_wide = 0;
  int num_narrow = 0;
  const AttentionMerge* merges = nullptr;  ///< device memory
  int num_merges = 0;
  float* workspace = nullptr;  ///< attention_workspace_floats(), aligned to 16 bytes
};
void attention(cudaStream_t stream, DType dtype, const AttentionArgs& args);

/// Softmax over logits float32 [T, experts], the top_k largest in falling order (ties to the lower
/// index), weights rescaled to sum 1 where `renormalise`; then, in the same order for every layout,
/// counts [experts], by their place in the send_order, and for each (token, choice) its row among
/// the packed ones: rows are grouped by send_order [experts] of their expert and keep token order
/// inside a group.
struct RouteArgs {
  const float* logits = nullptr;
  const std::int32_t* send_order = nullptr;
  int num_tokens = 0;
  int num_experts = 0;
  int top_k = 0;
  bool renormalise = true;
  bool forced = false;              ///< `experts` are given, not chosen
  bool forced_weights = false;      ///< so are `weights`
  std::int32_t* experts = nullptr;  ///< [T, top_k]
  float* weights = nullptr;         ///< [T, top_k]
  std::int32_t* slots = nullptr;    ///< [T, top_k]
  std::int32_t* counts = nullptr;   ///< [experts], in sending order
  std::int32_t* scratch = nullptr;  ///< route_scratch_ints(num_experts)
};
void route(cudaStream_t stream, const RouteArgs& args);

/// packed[slots[t, j]] = rows[t]; 16-byte accesses where the row allows it.
void pack(cudaStream_t stream, DType dtype, const void* rows, const std::int32_t* slots,
          void* packed, int num_tokens, int top_k, int hidden);
/// x[t] += round(sum_j weights[t, j] * rows[slots[t, j]]), j in rising order; and then, where
/// `norm_weight` is given, normed = RMSNorm(x) * norm_weight.
void merge(cudaStream_t stream, DType dtype, float* x, const void* rows, const std::int32_t* slots,
           const float* weights, int num_tokens, int top_k, int hidden, const float* norm_weight,
           float eps, void* normed);

/// out[i] = log softmax(logits[i])[targets[i]]; logits float32 [rows, vocab].
void log_probs(cudaStream_t stream, const float* logits, const std::int32_t* targets, float* out,
               int num_rows, int vocab);

/// out[i] = what sample_row() chooses from logits[i] by draws[i]; logits float32 [rows, vocab].
void sample(cudaStream_t stream, const float* logits, const Draw* draws, SampledToken* out,
            int num_rows, int vocab);

/// Rows [n, kv_heads, head_dim] of keys and of values of one sequence from (to) its pages;
/// positions first_position.. first_position + num_positions - 1.
void gather_kv(cudaStream_t stream, DType dtype, const KvPages& kv, const std::int32_t* pages,
               int first_position, int num_positions, void* keys, void* values);
void scatter_kv(cudaStream_t stream, DType dtype, const KvPages& kv, const std::int32_t* pages,
                int first_position, int num_positions, const void* keys, const void* values);

}  // namespace atl::compute::cuda
