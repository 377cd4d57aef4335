#pragma once
// What the CPU backend's operations do: weights and the arithmetic between them. Runs on the
// queue's worker thread; backend.cpp is the part that callers see.

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "compute/backend.hpp"
#include "compute/cpu/attention_plan.hpp"
#include "compute/cpu/chunk.hpp"
#include "compute/cpu/gemm.hpp"
#include "compute/cpu/kernels.hpp"
#include "compute/cpu/kv.hpp"
#include "compute/cpu/memory.hpp"
#include "compute/cpu/queue.hpp"
#include "compute/cpu/workspace.hpp"

namespace atl::compute {

/// A dense MLP or an expert; `gate` is empty for GELU, biases where the model has none.
struct CpuMlp {
  PackedWeight up;
  PackedWeight gate;
  PackedWeight down;
  AlignedBuffer up_bias;
  AlignedBuffer gate_bias;
  AlignedBuffer down_bias;
};

/// One head of latent attention.
struct CpuLatentHead {
  PackedWeight k_up;    // [head_dim - rope, latent], for expanded keys
  PackedWeight k_down;  // its transpose: queries to the latent
  PackedWeight v_up;    // [values_dim, latent]
};

/// One layer's weights. Norms are kept as float32.
struct CpuLayer {
  AlignedBuffer attention_norm;
  AlignedBuffer ffn_norm;
  AlignedBuffer q_norm;
  AlignedBuffer k_norm;
  PackedWeight qkv;
  std::vector<PackedWeight> o;  // [num_parts(Weight::o)]
  PackedWeight router;
  CpuMlp dense;
  std::vector<CpuMlp> experts;  // by local number
  // What only some models have:
  AlignedBuffer qkv_bias;
  AlignedBuffer output_bias;
  AlignedBuffer sinks;
  AlignedBuffer router_bias;
  AlignedBuffer selection_bias;
  CpuMlp shared;
  PackedWeight shared_router;
  AlignedBuffer q_latent_norm;
  AlignedBuffer kv_latent_norm;
  PackedWeight q_up;
  std::vector<CpuLatentHead> latent_heads;  // of this rank
};

Finish finish_of(Activation activation);
/// What becomes of the sums of a weight's GEMM; of one that has parts, of all of them.
Finish finish_of(Weight weight, const BackendOptions& options);

/// Parts of a weight by its output columns, each packed by itself: one, but by OutputCut::either
/// the output projection has one for each member, so that the rank can multiply by its own alone.
int num_parts(Weight weight, const BackendOptions& options);
/// What becomes of the sums where a part is used alone.
inline constexpr Finish finish_of_a_part = Finish::rounded;

/// A generated row of latent attention.
struct LatentRow {
  const Segment* segment = nullptr;
  int row = 0;  // of the chunk
  int position = 0;
};

/// Weights, KV cache and workspace, and the operations on them.
class CpuLayers {
 public:
  explicit CpuLayers(const BackendOptions& options);

  /// Packs one weight, already checked and converted to the activations' type.
  void load(const WeightInfo& info, int local_expert, const void* data);
  /// The same of a vector [rows].
  /// The same of a matrix that is kept as codes.
  void load_codes(const WeightInfo& info, int local_expert, const HostTensor& tensor);
  void load_vector(const WeightInfo& info, int local_expert, const float* data);
  /// Creates primitives and workspaces.
  void prepare();
  void execute(const CpuOp& op);

  std::int64_t expert_bytes(int layer) const;
  void read_expert(int layer, int local_expert, std::span<std::byte> bytes) const;
  void write_expert(int layer, int local_expert, std::span<const std::byte> bytes);
  void place_experts(int layer, std::span<const std::int32_t> experts, const ExpertPlaces& places) {
    options_.part.place_experts(layer, experts, places);
  }

  std::string description() const;
  const Backend::Memory& memory() const { return memory_; }  ///< prepared, without chunks

 private:
  // Rows of MLPs that run at once, and the products over them.
  struct MlpRows {
    std::vector<const void*> in;
    std::vector<void*> inner;
    std::vector<void*> out;
    std::vector<Product> up;
    std::vector<Product> down;
    const ModelShape* shape = nullptr;

    /// Empties all, with room for `most` rows.
    void clear(std::int64_t most);
    /// `rows` rows of `in`, from `first` on, through up, or of `inner` through down alone.
    void add_up(const CpuMlp& mlp, std::size_t first, int rows);
    void add_down(const CpuMlp& mlp, std::size_t first, int rows, Finish finish);
    /// The last `rows` rows through `mlp`; `finish` says how down's results go to `out`.
    void add(const CpuMlp& mlp, int rows, Finish finish);
  };

  void embed(CpuChunk& chunk);
  void attention(CpuChunk& chunk, int layer, AttentionPart part);
  void project(CpuChunk& chunk, const CpuLayer& weights);
  /// The same of latent attention: queries, then latents and keys not yet rotated.
  void project_latents(CpuChunk& chunk, const CpuLayer& weights, const void* normed);
  void output(CpuChunk& chunk, const CpuLayer& weights);
  /// The output projection's bias from column `first` on, where this rank adds it.
  const float* output_bias(const CpuLayer& weights, std::int64_t first) const;
  /// x += the projection of work_.heads, of own rows, part by part.
  void output_parts(CpuChunk& chunk, const CpuLayer& weights);
  void add_output(CpuChunk& chunk);
  /// The chunk's, or of all ranks that share attention.
  std::int64_t attention_rows(const CpuChunk& chunk) const;
  /// work_.heads = all heads of each row, of those rows whose heads came together.
  void gather_heads(const CpuChunk& chunk, std::int64_t rows);
  /// head_sums of own heads, and what all members' make.
  void sum_heads(CpuChunk& chunk);
  void mean_squares(const CpuChunk& chunk);
  void mlp(CpuChunk& chunk, int layer);
  /// The chunk's normed rows in work_.h through one MLP: x += what it gives, or that is written to
  /// `out`, [rows_at_once, H], for `then` to be called on rows [first, end).
  template <class Then>
  void run_mlp(CpuChunk& chunk, const CpuMlp& mlp, int width, void* out, const Then& then);
  void shared_expert(CpuChunk& chunk, int layer);
  void route(CpuChunk& chunk, int layer, RouteTo to);
  /// Experts and weights of the chunk, from router_logits.
  void choose(CpuChunk& chunk, const CpuLayer& weights);
  /// The same of chunk.forced.
  void force(CpuChunk& chunk, const CpuLayer& weights);
  /// Calls choose(args of token t) for every token, on several threads.
  template <class Choose>
  void for_tokens(CpuChunk& chunk, const CpuLayer& weights, const Choose& choose);
  void pack(CpuChunk& chunk);
  void pack_for_nodes(CpuChunk& chunk, const ExpertPlaces& places);
  void regroup(CpuChunk& chunk, const NodeRows& rows);
  void fold(CpuChunk& chunk, const NodeRows& rows);
  /// Row q of those that regroup forwards: own ones, then what arrived.
  const char* forwarded_row(const CpuChunk& chunk, const NodeRows& rows, std::int64_t q) const;
  void experts(CpuChunk& chunk, int layer, std::span<const RowBlock> blocks, ExpertPart part);
  /// The same where several ranks share experts.
  void shared_experts(CpuChunk& chunk, int layer, std::span<const RowBlock> blocks,
                      ExpertPart part);
  void collect_rows(CpuChunk& chunk, std::span<const RowBlock> blocks);
  void shared_up(CpuChunk& chunk, const CpuLayer& weights, std::span<const RowBlock> blocks);
  void shared_down(CpuChunk& chunk, const CpuLayer& weights, std::span<const RowBlock> blocks);
  void write_rows(CpuChunk& chunk, std::span<const RowBlock> blocks);
  void merge(CpuChunk& chunk);
  void sample(CpuChunk& chunk, std::span<const std::int32_t> rows,
              std::span<const SamplingRequest> how, SampledToken* out);
  void logits(CpuChunk& chunk, std::span<const std::int32_t> rows, float* out);
  void logprobs(CpuChunk& chunk, std::span<const std::int32_t> rows,
                std::span<const std::int32_t> targets, ScoredToken* out);

  void move_kv(const CpuOp& op);
  /// positions_ and pages_ of the chunk's rows.
  void place_rows(const CpuChunk& chunk);
  RopeTables rope_tables(int layer) const;
  void rotate_and_store(CpuChunk& chunk, int layer);
  void rotate_latents(CpuChunk& chunk, int layer);
  void attend(CpuChunk& chunk, int layer);
  void attend_latents(CpuChunk& chunk, int layer);
  void attend_expanded(CpuChunk& chunk, int layer, const Segment& segment, int num_rows);
  /// Keys and values of own heads from `first_head` on of the positions below `context`, expanded
  /// into work_.latent.
  void expand(int layer, const Segment& segment, int context, int first_head, int num_heads);
  /// Rows of products: each its own `in` and `out`, or the last `rows` of each through one weight.
  void clear_parts();
  void add_part(const void* in, void* out);
  void add_products(const PackedWeight& weight, std::int64_t rows);
  /// work_.latent.queries = those of the rows, taken to the latents.
  void absorb_queries(const CpuChunk& chunk, int layer, std::span<const LatentRow> rows);
  void attend_absorbed(CpuChunk& chunk, int layer, std::span<const LatentRow> rows);
  /// Where attention's output goes.
  void* attended(const CpuChunk& chunk) const {
    return options_.part.attention.shared() ? chunk.heads_send : chunk.memory.context.data();
  }
  /// A position's latent and rotated key.
  const char* latent_row(int layer, const Segment& segment, int position) const;
  const KvLayout& layout(int layer) const { return layouts_[static_cast<std::size_t>(layer)]; }
  /// out [T, H] = RMSNorm(x).
  void norm(const CpuChunk& chunk, const AlignedBuffer& weight, void* out);
  template <class Visit>
  void for_logits(CpuChunk& chunk, std::span<const std::int32_t> rows, const Visit& visit);
  /// out[i] = final norm of x[rows[i]].
  void norm_rows(CpuChunk& chunk, std::span<const std::int32_t> rows, void* out);
  AlignedBuffer& vector_place(const WeightInfo& info, int local_expert);
  void load_latent_heads(const WeightInfo& info, const void* data);
  /// Adds up and prepares what one weight has become.
  void prepare_weight(const WeightInfo& info, int local_expert);
  const CpuMlp& expert_of(int layer, int local_expert) const {
    return layers_[static_cast<std::size_t>(layer)].experts[static_cast<std::size_t>(local_expert)];
  }
  std::span<PackedWeight> matrix_places(const WeightInfo& info, int local_expert);
  void reserve_latents();
  float* x_row(const CpuChunk& chunk, std::int64_t token) const {
    return chunk.memory.x.as<float>() + token * shape_.hidden;
  }
  char* row(void* base, std::int64_t index, std::int64_t width) const {
    return static_cast<char*>(base) + index * width * element_bytes_;
  }
  char* row(const AlignedBuffer& base, std::int64_t index, std::int64_t width) const {
    return row(base.data(), index, width);
  }

  BackendOptions options_;
  const ModelShape& shape_;
  std::int64_t element_bytes_;
  OwnHeads own_;
  int sums_per_member_;
  std::vector<KvLayout> layouts_;         // [num_layers]
  std::vector<OwnHeads> heads_of_layer_;  // [num_layers]
  std::unique_ptr<Gemm> gemm_;
  const Kernels& kernels_;

  std::vector<CpuLayer> layers_;
  AlignedBuffer embedding_;  // [vocab, H]
  AlignedBuffer final_norm_;
  PackedWeight lm_head_;
  CpuKvCache kv_;
  CpuWorkspace work_;  // used by one operation at a time
  Backend::Memory memory_;
  MlpRows mlp_;
  struct {
    std::vector<const void*> in;
    std::vector<void*> out;  // [parts, rows]
    std::vector<Product> products;
  } parts_;  // of output_parts
  std::vector<LatentRow> latent_rows_;
  std::vector<std::int32_t> positions_;  // [max_tokens]
  std::vector<std::int32_t> pages_;      // [max_tokens]
  std::vector<std::size_t> outcome_of_;  // [rows to sample], where each row's tokens begin
  AttendPlan attend_plan_;
};

}  // namespace atl::compute
