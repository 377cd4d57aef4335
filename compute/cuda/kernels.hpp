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

#include "compute/across_rows.hpp"
#include "compute/both.hpp"
#include "compute/cuda/plan/attention_plan.hpp"
#include "compute/cuda/plan/check_shape.hpp"
#include "compute/cuda/plan/kv.hpp"
#include "compute/cuda/plan/weight_memory.hpp"
#include "compute/expert_places.hpp"
#include "compute/sampling.hpp"
#include "compute/types.hpp"

namespace atl::compute::cuda {

/// Whether the kernels were compiled for the current device: cudaErrorNoKernelImageForDevice where
/// not. `architecture` is the one that is taken of those in the program, e.g. 90.
cudaError_t find_kernels(int& architecture);
/// The architectures they were compiled for, as CMake names them, e.g. "90a" or "80/90a".
std::string built_architectures();

/// Where rows of a chunk belong: its segments as the kernels read them, in device memory.
struct RowMap {
  const std::int32_t* position = nullptr;  ///< [T], of each row in its sequence
  const std::int32_t* sequence = nullptr;  ///< [T], segment of each row
  const std::int32_t* pages = nullptr;     ///< [segments, max_pages], page ids of each segment
  int max_pages = 0;
};

/// out [rows, cols] = the elements that the rows would be without codes.
void unpack(cudaStream_t stream, DType dtype, const struct CodedRows& from, void* out);

// x is the residual stream, in float32.

/// x [T, H] = table[tokens] [T, H] * scale.
void embed(cudaStream_t stream, DType dtype, const void* table, const std::int32_t* tokens,
           float* x, int num_tokens, int hidden, float scale = 1);

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

/// An MLP's gate and up in models with biases, or that clamp.
struct GatedArgs {
  const float* gate = nullptr;       ///< [rows, width]
  const float* gate_bias = nullptr;  ///< [width]; null: none
  const void* up = nullptr;          ///< [rows, width]
  void* out = nullptr;               ///< [rows, width]; may be `up`
  int num_rows = 0;
  int width = 0;
  bool clamped = false;  ///< by Activation::swiglu_clamped, else swiglu
  float limit = 0;
  float alpha = 0;
};
void gated(cudaStream_t stream, DType dtype, const GatedArgs& args);

/// Which query heads of a rank read which of the KV heads that it keeps: groups of `group`, of
/// which the first and the last may have fewer where several ranks share attention.
struct HeadGroups {
  int group = 1;   ///< in the model
  int before = 0;  ///< query heads of the first group that other ranks have
  int most = 1;    ///< of this rank in a group

  ATOLL_BOTH int first(int kv_head) const { return kv_head == 0 ? 0 : kv_head * group - before; }
  ATOLL_BOTH int end(int kv_head, int num_heads) const {
    const int whole = (kv_head + 1) * group - before;
    return whole < num_heads ? whole : num_heads;
  }
  ATOLL_BOTH int kv_head_of(int head) const { return (head + before) / group; }
};

/// Sums of squares of the heads of rows, which ranks that share attention tell each other (see
/// Chunk::head_sums): [members, rows, per_member].
struct HeadSums {
  const float* sums = nullptr;  ///< null: this rank has all heads, and makes the sums itself
  int members = 1;
  std::int64_t num_rows = 0;
  int per_member = 0;
  int num_kv_heads = 0;  ///< of the model
};

/// out[r][h] = the sum of squares of head h of row r; rows of qkv as in RopeArgs, of out
/// `per_member` apart.
void head_squares(cudaStream_t stream, DType dtype, const struct RopeArgs& args, float* out);

/// Normalises (see QkNorm) and rotates q in place and k, and stores k and v into their pages.
/// qkv [T, q, k, v]; v may have another width, and is multiplied by `value_factor`. `angles`
/// [max_positions, dims]: cosines, then sines, of position * frequencies[i] as float32 rounded from
/// double, of the first `dims` of a head.
struct RopeArgs {
  KvPages kv;
  RowMap map;
  int num_heads = 0;
  HeadGroups groups;
  int num_rows = 0;
  QkNorm norm = QkNorm::none;
  HeadSums squares;  ///< for whole_row
  const float* q_norm = nullptr;
  const float* k_norm = nullptr;
  float eps = 0;
  const float* angles = nullptr;
  int dims = 0;
  bool norm_after = false;  ///< by per_head: rotated first
  float q_factor = 1;       ///< of q, in the end
  float value_factor = 1;
  void* qkv = nullptr;
};
void rope_and_store(cudaStream_t stream, DType dtype, const RopeArgs& args);

/// Causal attention over the pages: out [T, heads * value_dim] for q in qkv (rows `qkv_stride`
/// elements apart), softmax in float32. The work is listed by plan_attention (attention_plan.hpp),
/// whose lists the caller copies to the device. Copies are of 16 bytes where all rows begin at
/// multiples of that.
struct AttentionArgs {
  KvPages kv;
  RowMap map;
  int num_heads = 0;
  HeadGroups groups;
  int num_rows = 0;
  const void* qkv = nullptr;
  std::int64_t qkv_stride = 0;
  void* out = nullptr;
  std::int64_t out_stride = 0;           ///< elements between rows; 0: heads * value_dim
  int window = 0;                        ///< keys that a row sees, as the work was planned; 0: all
  const float* sinks = nullptr;          ///< [heads], see AttentionKind; null: none
  float scale = 0;                       ///< of scores; 0: 1 / sqrt(head_dim)
  const AttentionTile* tiles = nullptr;  ///< device memory: [num_wide], then [num_narrow]
  int num_wide = 0;
  int num_narrow = 0;
  const AttentionMerge* merges = nullptr;  ///< device memory
  int num_merges = 0;
  float* workspace = nullptr;  ///< attention_workspace_floats(), aligned to 16 bytes
  bool wgmma = false;          ///< by warpgroups: see wgmma_attends(); the plan is by_groups
  float* totals = nullptr;     ///< attention_totals_floats(), aligned to 16 bytes

  ATOLL_BOTH std::int64_t out_row() const {
    return out_stride > 0 ? out_stride : std::int64_t{num_heads} * kv.values_dim();
  }
};
void attention(cudaStream_t stream, DType dtype, const AttentionArgs& args);

/// out [rows, width] = round(RMSNorm(in) * weight), and the `kept` elements that follow in `in` go
/// to kept_out [rows, kept]; rows of `in` are width + kept elements.
struct NormLatentsArgs {
  const void* in = nullptr;
  const float* weight = nullptr;
  float eps = 0;
  void* out = nullptr;
  void* kept_out = nullptr;
  int num_rows = 0;
  int width = 0;
  int kept = 0;
};
void norm_latents(cudaStream_t stream, DType dtype, const NormLatentsArgs& args);

/// Rotates the last `dims` dimensions of each head of q in place, by its position's temperature,
/// and stores what is kept of a row into its page: the latent, normalised, and its key, rotated.
struct LatentRopeArgs {
  KvPages kv;
  RowMap map;
  int num_heads = 0;
  int num_rows = 0;
  int head_dim = 0;  ///< of q
  void* q = nullptr;
  std::int64_t q_stride = 0;
  const void* latents = nullptr;
  std::int64_t latent_stride = 0;
  const float* norm = nullptr;  ///< [latent]
  float eps = 0;
  const float* angles = nullptr;  ///< as in RopeArgs
  int dims = 0;
  QueryTemperature temperature;
};
void latent_rope(cudaStream_t stream, DType dtype, const LatentRopeArgs& args);

/// Of `num_rows` rows of q, or of those that `rows` lists, for each head: its first dimensions
/// taken to the latents by k_up [heads * (head_dim - rope), latent], and its last ones beside them.
/// out [num_rows, heads, latent + rope].
struct AbsorbArgs {
  const void* q = nullptr;
  std::int64_t q_stride = 0;
  const std::int32_t* rows = nullptr;
  const void* k_up = nullptr;
  void* out = nullptr;
  int num_rows = 0;
  int num_heads = 0;
  int head_dim = 0;
  int rope = 0;
  int latent = 0;
};
void absorb_queries(cudaStream_t stream, DType dtype, const AbsorbArgs& args);
/// out[rows[i]] [heads, value_dim] = v_up [heads * value_dim, latent] * in[i] [heads, latent], head
/// by head.
struct ProjectLatentsArgs {
  const void* in = nullptr;
  const std::int32_t* rows = nullptr;
  const void* v_up = nullptr;
  void* out = nullptr;
  std::int64_t out_stride = 0;
  int num_rows = 0;
  int num_heads = 0;
  int value_dim = 0;
  int latent = 0;
};
void project_latents(cudaStream_t stream, DType dtype, const ProjectLatentsArgs& args);

/// out [n, latent] = the latents of positions first.. of a sequence.
void gather_latents(cudaStream_t stream, DType dtype, const KvPages& kv, const std::int32_t* pages,
                    int first, int count, void* out);
/// What heads' keys and values are made of for positions first.. of a sequence: k_rows [n, heads,
/// head_dim - rope] with the rotated keys of `latents` behind them, and v_rows [n, heads,
/// value_dim], into `to`, whose first page has all positions.
void store_expanded(cudaStream_t stream, DType dtype, const KvPages& latents,
                    const std::int32_t* pages, int first, int count, const void* k_rows,
                    const void* v_rows, const KvPages& to);

/// What each member of a group has of some rows: columns of them, or a summand.
struct MemberRows {
  const void* received = nullptr;  ///< [members, rows, width]
  const void* own = nullptr;  ///< [rows, width]: what `place` has, whose received rows are void
  int members = 1;
  int place = 0;  ///< -1: nobody
  int num_rows = 0;
  int width = 0;
  std::int64_t member_rows = 0;  ///< of `received` from member to member, where more than these
};
/// out [rows, members * width] = the members' columns beside each other.
void join_columns(cudaStream_t stream, DType dtype, const MemberRows& rows, void* out);
/// out [rows, width] = round(the sum of the members' rows, in float32 and in their order).
/// `summands`: the type of the rows, float32 or `dtype`.
void sum_members(cudaStream_t stream, DType dtype, DType summands, const MemberRows& rows,
                 void* out);

/// out [num_rows, width] = round(sums + bias), sums float32.
void add_bias(cudaStream_t stream, DType dtype, const float* sums, const float* bias, void* out,
              int num_rows, int width);
/// rows [num_rows, hidden] = round(rows * sigmoid(weight . normed)), weight [hidden].
void weigh_rows(cudaStream_t stream, DType dtype, void* rows, const void* normed,
                const void* weight, int num_rows, int hidden);

/// Softmax over logits float32 [T, experts], the top_k largest in falling order (ties to the lower
/// index), weights rescaled to sum 1 where `renormalise`, and a replica for each choice (see
/// choose_replicas). Then, in the same order for every layout, counts, and where rows lie: they are
/// grouped by place, or by node, and keep token order inside a group.
struct RouteArgs {
  const float* logits = nullptr;
  ReplicaTable replicas;      ///< in device memory
  bool has_replicas = false;  ///< some expert has several
  bool for_nodes = false;     ///< rows go to nodes, once each
  int num_tokens = 0;
  int num_experts = 0;
  int num_places = 0;
  int num_nodes = 1;
  int top_k = 0;
  bool renormalise = true;
  bool described = false;  ///< by `router`, of up to 32 groups, with these vectors where not null
  Router router;
  const float* logit_bias = nullptr;
  const float* selection_bias = nullptr;  ///< [experts], added to scores for choosing
  bool forced = false;                    ///< `experts` are given, not chosen
  bool forced_weights = false;            ///< so are `weights`
  const float* offsets = nullptr;         ///< [T, experts], see ChoiceOffsets; null: none
  float* given_up = nullptr;              ///< [T], with offsets: see Backend::save_choices
  std::int32_t* experts = nullptr;        ///< [T, top_k]
  float* weights = nullptr;               ///< [T, top_k]
  std::int32_t* chosen = nullptr;         ///< [T, top_k], replicas, indices into the table
  /// [T, top_k]: the choice's row among the packed ones. for_nodes: among those that come back; for
  /// a token that one node adds up the first says where, the others are -1.
  std::int32_t* slots = nullptr;
  std::int32_t* sent = nullptr;  ///< for_nodes: [T, top_k], the row among those packed for nodes
  /// [num_counts()]: rows for each place; where nodes are counted, tokens that go to each, and rows
  /// that come back from each (see Chunk::node_returns).
  std::int32_t* counts = nullptr;
  std::int32_t* scratch = nullptr;  ///< group_scratch_ints(num_counts())

  ATOLL_BOTH bool counts_nodes() const { return for_nodes || num_nodes > 1; }
  ATOLL_BOTH int num_counts() const { return num_places + (counts_nodes() ? 2 * num_nodes : 0); }
};
void route(cudaStream_t stream, const RouteArgs& args);

/// packed[slots[t, j]] = rows[t]; 16-byte accesses where the row allows it.
void pack(cudaStream_t stream, DType dtype, const void* rows, const std::int32_t* slots,
          void* packed, int num_tokens, int top_k, int hidden);

/// packed[sent[t, j]] = rows[t] with the tail for the node of choice j, once for each node.
struct PackForNodesArgs {
  const void* rows = nullptr;  ///< [T, H]
  AcrossRow form;
  ReplicaTable replicas;                        ///< in device memory
  const std::int32_t* first_of_node = nullptr;  ///< places of a node's replicas
  const std::int32_t* chosen = nullptr;         ///< [T, top_k]
  const float* weights = nullptr;               ///< [T, top_k]
  const std::int32_t* sent = nullptr;           ///< [T, top_k]
  void* packed = nullptr;                       ///< aligned to 16 bytes
  int num_tokens = 0;
  int top_k = 0;
  int hidden = 0;
};
void pack_for_nodes(cudaStream_t stream, DType dtype, const PackForNodesArgs& args);

/// Rows with tails that a rank forwards inside its node: own ones, then those that arrived.
struct ForwardedRows {
  const void* own = nullptr;
  const void* arrived = nullptr;
  int num_own = 0;
  int num_rows = 0;  ///< of both
  AcrossRow form;
  int top_k = 0;
  int hidden = 0;
  int num_places = 0;  ///< of the node
  /// [rows, top_k]: each choice's row among the forwarded ones, which are grouped by place and keep
  /// the order of rows inside a group; -1: another node's.
  std::int32_t* slots = nullptr;
  /// [rows]: where a row's results begin among those of own rows, or of arrived ones: one result
  /// where all of the row's choices are here, else one for each that is.
  std::int32_t* returns = nullptr;
  std::int32_t* scratch = nullptr;  ///< group_scratch_ints(num_groups())

  ATOLL_BOTH int num_groups() const { return num_places + 2; }
};
/// Fills slots and returns, then forwarded[slots[q, j]] = row q, without its tail.
void regroup(cudaStream_t stream, DType dtype, const ForwardedRows& rows, void* forwarded);
/// The results that go back, after regroup: own_out, or arrived_out, from returns[q] on: the sum of
/// results[slots[q, j]] by the tail's weights, j in rising order, rounded once; or those rows.
void fold(cudaStream_t stream, DType dtype, const ForwardedRows& rows, const void* results,
          void* own_out, void* arrived_out);

/// x[t] += round(sum_j weights[t, j] * rows[slots[t, j]]), j in rising order; and then, where
/// `norm_weight` is given, normed = RMSNorm(x) * norm_weight.
struct MergeArgs {
  float* x = nullptr;                   ///< [T, H]
  const void* rows = nullptr;           ///< [.., H]
  const std::int32_t* slots = nullptr;  ///< [T, top_k]
  const float* weights = nullptr;       ///< [T, top_k]
  /// Rows come from nodes: where top_k is 1 or slots[t, 1] is negative, rows[slots[t, 0]] is the
  /// sum already.
  bool from_nodes = false;
  int num_tokens = 0;
  int top_k = 0;
  int hidden = 0;
  const float* norm_weight = nullptr;
  float eps = 0;
  void* normed = nullptr;  ///< [T, H]
};
void merge(cudaStream_t stream, DType dtype, const MergeArgs& args);

/// out[i] = log softmax(logits[i])[targets[i]], and whether that is the first of the largest;
/// logits float32 [rows, vocab].
void log_probs(cudaStream_t stream, const float* logits, const std::int32_t* targets,
               ScoredToken* out, int num_rows, int vocab);

/// What sample_row() makes of logits[i] by draws[i], with the changes and to the place in `out`
/// that this says; logits float32 [rows, vocab].
void sample(cudaStream_t stream, float* logits, const Draw* draws, LogitChange* changes,
            SampledToken* out, int num_rows, int vocab);

/// Rows of keys [n, kv_heads, head_dim] and of values [n, kv_heads, value_dim] of one sequence from
/// (to) its pages; positions first_position.. first_position + num_positions - 1. Of latents there
/// are only keys.
void gather_kv(cudaStream_t stream, DType dtype, const KvPages& kv, const std::int32_t* pages,
               int first_position, int num_positions, void* keys, void* values);
void scatter_kv(cudaStream_t stream, DType dtype, const KvPages& kv, const std::int32_t* pages,
                int first_position, int num_positions, const void* keys, const void* values);

}  // namespace atl::compute::cuda
