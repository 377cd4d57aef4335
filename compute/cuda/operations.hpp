#pragma once
// The operations of the CUDA backend: which kernels and GEMMs a step is, on which stream.

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "compute/cuda/backend.hpp"
#include "compute/cuda/chunk.hpp"
#include "compute/cuda/gemm.hpp"
#include "compute/cuda/plan/workspace.hpp"
#include "compute/cuda/queue.hpp"
#include "compute/cuda/switches.hpp"
#include "compute/cuda/weights.hpp"

namespace atl::compute::cuda {

class CudaLayers {
 public:
  /// Takes all memory but the chunks'.
  CudaLayers(const BackendOptions& options, const CudaDevice& device);

  void load(const WeightInfo& info, int local_expert, const void* data) {
    weights_.load(options_, info, local_expert, data);
  }
  void load_codes(const WeightInfo& info, int local_expert, const HostTensor& tensor) {
    weights_.load_codes(info, local_expert, tensor);
  }
  /// Waits until all weights are on the device.
  void finish_weights() { weights_.finish(options_); }
  /// The same; and chooses GEMM algorithms, which takes a while.
  void prepare();

  std::int64_t expert_bytes(int layer) const { return weights_.expert_bytes(options_, layer); }
  void read_expert(int layer, int local_expert, std::span<std::byte> bytes) const {
    weights_.read_expert(options_, layer, local_expert, bytes);
  }
  void write_expert(int layer, int local_expert, std::span<const std::byte> bytes) {
    weights_.write_expert(options_, layer, local_expert, bytes);
  }
  void place_experts(int layer, std::span<const std::int32_t> experts, const ExpertPlaces& places);

  Event embed(CudaChunk& chunk);
  Event attention(CudaChunk& chunk, int layer, AttentionPart part);
  Event mlp(CudaChunk& chunk, int layer);
  Event shared_expert(CudaChunk& chunk, int layer);
  Event route(CudaChunk& chunk, int layer, RouteTo to);
  Event regroup(CudaChunk& chunk, int layer, const NodeRows& rows);
  Event experts(CudaChunk& chunk, int layer, std::span<const RowBlock> blocks, ExpertPart part);
  Event fold(CudaChunk& chunk, int layer, const NodeRows& rows);
  Event merge(CudaChunk& chunk, int layer);
  Event sample(CudaChunk& chunk, std::span<const std::int32_t> rows,
               std::span<const SamplingRequest> how, SampledToken* out);
  Event logits(CudaChunk& chunk, std::span<const std::int32_t> rows, float* out);
  Event logprobs(CudaChunk& chunk, std::span<const std::int32_t> rows,
                 std::span<const std::int32_t> targets, ScoredToken* out);
  Event save_x(const CudaChunk& chunk, float* x);
  Event save_choices(const CudaChunk& chunk, std::int32_t* experts, float* weights,
                     float* given_up);
  Event save_kv(int layer, std::span<const std::int32_t> pages, int first_position,
                int num_positions, void* keys, void* values);
  Event load_kv(int layer, std::span<const std::int32_t> pages, int first_position,
                int num_positions, const void* keys, const void* values);

  CudaQueue& queue() { return queue_; }
  const CudaQueue& queue() const { return queue_; }
  bool fuses_gelu() const { return fuses_gelu_; }
  bool by_wgmma() const { return by_wgmma_; }
  const CudaGemm& gemm() const { return gemm_; }
  Backend::Memory memory() const;  ///< without chunks

 private:
  /// The GEMMs of an MLP; `up` is with its activation where that is fused.
  struct MlpKinds {
    CudaGemm::Kind up = -1;
    CudaGemm::Kind up_float = -1;  ///< float32 results, for GELU by a kernel
    CudaGemm::Kind gate = -1;      ///< also of up, where a bias is added
    CudaGemm::Kind down = -1;
    CudaGemm::Kind down_float = -1;  ///< where a bias is added
    int width = 0;
    int out = 0;  ///< columns of results
  };
  /// Rows of one expert that are adjacent in memory, as are their results.
  struct Run {
    std::byte* in;
    std::byte* out;
    std::int64_t rows;
  };

  void upload_forced(CudaChunk& chunk, int layer);
  void upload_offsets(CudaChunk& chunk, int layer);
  /// Of an MLP that so many ranks share.
  MlpKinds add_mlp(const CudaMlp& mlp, int width, int members = 1);
  /// Whether GELU is part of GEMMs.
  void choose_gelu(const Stream& stream);
  /// Parts of experts that several ranks share, for one block, whose rows follow `done` own ones of
  /// `own_rows`.
  struct SharedBlock {
    const RowBlock& block;
    std::int64_t done;
    std::int64_t own_rows;
  };
  void run_shared(const Stream& stream, CudaChunk& chunk, int layer,
                  std::span<const RowBlock> blocks, ExpertPart part);
  void collect_rows(const Stream& stream, CudaChunk& chunk, const SharedBlock& own);
  void shared_up(const Stream& stream, CudaChunk& chunk, const CudaMlp& mlp, const RowBlock& block);
  void shared_down(const Stream& stream, CudaChunk& chunk, const CudaMlp& mlp,
                   const RowBlock& block);
  void write_rows(const Stream& stream, CudaChunk& chunk, const SharedBlock& own);
  /// Where row `row` of `width` elements begins.
  std::byte* row_at(const void* base, std::int64_t row, std::int64_t width) const {
    return static_cast<std::byte*>(const_cast<void*>(base)) +
           row * width * static_cast<std::int64_t>(size_of(dtype_));
  }
  /// The GEMMs of attention.
  void add_attention();
  void add_projections();
  /// Of attention over keys and values.
  std::size_t kind_of(int layer) const {
    return shape_.attentions.empty() ? 0 : shape_.attention_of[static_cast<std::size_t>(layer)];
  }
  const CudaAngles& angles_of(int layer) const {
    return weights_.angles[static_cast<std::size_t>(shape_.attention(layer).rope)];
  }
  /// Of the results' columns from `first` on; null: this rank adds none.
  const float* output_bias(const CudaLayer& weights, std::int64_t first) const;
  /// output_send = this rank's summands of the projection.
  void add_summands(const Stream& stream, CudaChunk& chunk, const CudaLayer& weights);
  /// Own columns of a layer's output projection, which may be all that this rank has of it.
  const void* own_output_columns(const void* o) const;
  void project(const Stream& stream, CudaChunk& chunk, int layer);
  void attend(const Stream& stream, CudaChunk& chunk, int layer);
  void output(const Stream& stream, CudaChunk& chunk, int layer);
  /// x += work_.out, and the norm that follows attention.
  void add_to_x(const Stream& stream, CudaChunk& chunk, int layer);
  /// work_.out = what members made of own rows, which output_send and output_recv have.
  void join_output(const Stream& stream, CudaChunk& chunk);
  RopeArgs rope_args(const CudaChunk& chunk, int layer) const;
  HeadGroups head_groups(int layer) const;
  /// Attention's work of a chunk in `args`; there is some. Heads that it gives go to `out`.
  void launch_attention(const Stream& stream, const CudaChunk& chunk, const AttendWork& work,
                        AttentionArgs args) const;
  void* attended(CudaChunk& chunk) const {
    return options_.part.attention.shared() ? chunk.heads_send : chunk.memory.context;
  }
  /// A matrix as a product takes it: itself, or, where it is kept as codes, its elements, which
  /// stay until the next one that is.
  const void* plain(const Stream& stream, const void* matrix) const;
  /// Numbers in place of a coded matrix's elements, to try algorithms with.
  const void* sample(const void* matrix) const;
  void fill_samples();
  /// rows [n, width] = the bias added to sums, or nothing where there is no bias: `gemm` runs to
  /// `sums` then, else to `rows`.
  void run_biased(const Stream& stream, CudaGemm::Kind plain, CudaGemm::Kind summed,
                  const void* weight, const void* in, std::int64_t rows, const float* bias,
                  int width, float* sums, void* out);

  // Latent attention, see latent.cpp.
  void add_latents(const CudaLayer& first);
  void project_latents(const Stream& stream, CudaChunk& chunk, const CudaLayer& weights,
                       const void* normed);
  void attend_latents(const Stream& stream, CudaChunk& chunk, int layer);
  void attend_expanded(const Stream& stream, CudaChunk& chunk, int layer, const AttendWork& work);
  /// Keys and values of some heads, of all positions of a context.
  void expand(const Stream& stream, int layer, const std::int32_t* pages, int context,
              int first_head);
  KvPages expanded_pages() const;
  void attend_absorbed(const Stream& stream, CudaChunk& chunk, int layer, const AttendWork& work);
  /// Where q, and what is kept of rows, lie in a chunk.
  struct LatentRows {
    void* q;
    std::int64_t q_stride;
    void* kept;
    std::int64_t kept_stride;
  };
  LatentRows latent_rows(const CudaChunk& chunk) const;
  const CudaPlaces& places_of(int layer) const;
  void pack(const Stream& stream, CudaChunk& chunk, int layer, RouteTo to);
  /// What regroup and fold take.
  ForwardedRows forwarded_rows(const CudaChunk& chunk, int layer, const NodeRows& rows) const;
  /// work_.out = the MLP of the chunk's normed rows.
  void run_mlp(const Stream& stream, const CudaChunk& chunk, const MlpKinds& kinds,
               const CudaMlp& mlp);
  /// out [rows, columns] = the MLP's inner rows times `down`.
  void mlp_down(const Stream& stream, const MlpKinds& kinds, const CudaMlp& mlp, const void* inner,
                std::int64_t rows, void* out);
  /// inner [rows, width] = the MLP's activation over in [rows, H].
  void mlp_up(const Stream& stream, const MlpKinds& kinds, const CudaMlp& mlp, const void* in,
              std::int64_t rows, void* inner);
  /// One expert's part of an operation; `inner` is where its next inner rows lie.
  struct ExpertWork {
    const Stream& stream;
    const CudaMlp& mlp;
    ExpertPart part;
    std::byte*& inner;
    bool up() const { return part != ExpertPart::down; }
    bool down() const { return part != ExpertPart::up; }
  };
  void run_expert(const ExpertWork& work);
  /// Of up to the workspace's mlp_rows rows.
  void run_tile(const ExpertWork& work, const void* in, std::int64_t rows, void* out);
  void run_gathered(const ExpertWork& work, std::span<const Run> runs, std::int64_t rows);
  /// Whether all of the runs together are computed sooner than the longest and the others apart.
  bool gathering_pays(std::int64_t rows) const;
  /// Copies the runs' rows to `together`, or from there with `back`.
  void move_runs(const Stream& stream, std::span<const Run> runs, void* together, bool back) const;
  void collect_runs(std::span<const RowBlock> blocks);
  /// memory.normed = RMSNorm(x) * weight, unless it is already.
  void norm(const Stream& stream, CudaChunk& chunk, const float* weight);
  /// The norm that the next step takes after this layer, or null after the last layer.
  const float* norm_after(int layer) const;
  /// What upload_head brought to the device; `draws` or `targets`, whichever were given.
  struct HeadInputs {
    const std::int32_t* rows;
    const Draw* draws;
    const std::int32_t* targets;
  };
  HeadInputs upload_head(const Stream& stream, CudaChunk& chunk, std::span<const std::int32_t> rows,
                         std::span<const SamplingRequest> how,
                         std::span<const std::int32_t> targets);
  /// Calls work(first, count) for pieces of the rows, each time that logits of `count` rows from
  /// rows[first] on are enqueued; they are there until the next piece.
  template <class Work>
  void for_logits(const Stream& stream, CudaChunk& chunk, const std::int32_t* rows,
                  std::size_t num_rows, const Work& work);
  /// Says to draws where their changes will lie.
  void place_changes(std::span<const SamplingRequest> how, Draw* draws) const;
  /// Samples rows [first, first + count) of `how`, whose logits are in the workspace, as many at
  /// once as there is room for their changes.
  void sample_piece(const Stream& stream, CudaChunk& chunk, const Draw* draws,
                    std::span<const SamplingRequest> how, std::size_t first, std::size_t count);
  /// How many rows from `first` on, up to `end`, have changes that find room together; at least
  /// one.
  std::size_t rows_with_room(std::span<const SamplingRequest> how, std::size_t first,
                             std::size_t end) const;
  /// Copies results to host memory on `stream`, through pinned memory where the host's is not.
  void to_host(const Stream& stream, void* host, const void* device, std::size_t bytes);
  /// Of one position's keys and values; latents are keys only.
  struct KvRowBytes {
    std::size_t keys;
    std::size_t values;
  };
  KvRowBytes kv_row_bytes(int layer) const;
  const std::int32_t* upload_pages(const Stream& stream, std::span<const std::int32_t> pages);
  std::size_t row_bytes() const {
    return static_cast<std::size_t>(shape_.hidden) * size_of(options_.dtype);
  }

  BackendOptions options_;
  const ModelShape& shape_;
  const OwnHeads own_;  // in the kind of layer with most KV heads
  std::vector<OwnHeads> heads_of_layer_;
  const int sums_per_member_;
  const DType dtype_;
  const Switches switches_ = read_switches();
  int multiprocessors_ = 0;
  const bool by_wgmma_;  // attention
  DeviceBuffer weight_memory_, kv_memory_, workspace_memory_;
  CudaWeights weights_;
  KvCache kv_;
  Workspace work_;
  CudaGemm gemm_;
  CudaGemm::Kind router_ = -1, lm_head_ = -1;
  std::vector<CudaGemm::Kind> qkv_;  // [kinds of attention]
  LatentHeads latent_;
  CudaGemm::Kind q_up_ = -1, k_up_ = -1, v_up_ = -1;
  CudaGemm::Kind o_ = -1;                             // of whole rows, or of summands
  CudaGemm::Kind o_columns_ = -1;                     // of own columns
  CudaGemm::Kind o_sums_ = -1, o_columns_sums_ = -1;  // the same, where a bias is added
  MlpKinds dense_, expert_, shared_;
  bool fuses_gelu_ = false;
  std::vector<Run> runs_;
  CudaEvent logits_free_;  // what lay in the workspace's logits is with the host
  CudaEvent kv_moved_;     // what lay in its qkv is
  PinnedBuffer bounce_;    // used by the host stream, one piece after the other
  UploadRing page_uploads_;
  UploadRing change_uploads_;
  CudaQueue queue_;  // last: waits for what is under way before memory goes
};

}  // namespace atl::compute::cuda
