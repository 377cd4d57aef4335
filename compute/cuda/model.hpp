#pragma once
// What the CUDA backend keeps on the device: weights, KV cache, workspace, chunks. Each part takes
// its memory from an Arena, which may only count: plan and allocation are the same code.

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "compute/backend.hpp"
#include "compute/cuda/gemm.hpp"
#include "compute/cuda/kernels.hpp"
#include "compute/cuda/memory.hpp"
#include "compute/cuda/queue.hpp"

namespace atl::compute::cuda {

/// A dense MLP or an expert; `gate` is null for GELU. Matrices [out, in].
struct CudaMlp {
  void* up = nullptr;
  void* gate = nullptr;
  void* down = nullptr;
};

/// One layer's weights. Norms are float32.
struct CudaLayer {
  float* attention_norm = nullptr;
  float* ffn_norm = nullptr;
  float* q_norm = nullptr;
  float* k_norm = nullptr;
  void* qkv = nullptr;
  void* o = nullptr;
  void* router = nullptr;
  CudaMlp dense;
  std::vector<CudaMlp> experts;  // by local number
};

/// All weights of this rank, in place for the whole job.
class CudaWeights {
 public:
  CudaWeights() = default;
  CudaWeights(const BackendOptions& options, Arena& arena);

  /// Copies one weight, already checked, as elements of options.dtype.
  void load(const BackendOptions& options, const WeightInfo& info, int local_expert,
            const void* data);
  /// Fills the tables of angles and of the sending order.
  void finish(const BackendOptions& options);

  void* embedding = nullptr;  // [vocab, H]
  void* lm_head = nullptr;    // [vocab, H]
  float* final_norm = nullptr;
  float* angles = nullptr;             // [num_positions, head_dim]
  std::int32_t* send_order = nullptr;  // [num_experts]
  std::vector<CudaLayer> layers;

 private:
  void** matrix_place(const WeightInfo& info, int local_expert);
  float** vector_place(const WeightInfo& info);
};

/// Positions that a sequence can reach: the model's, or fewer where the KV cache ends earlier.
int num_positions(const BackendOptions& options);

/// The KV cache of all layers.
struct KvCache {
  KvCache() = default;
  KvCache(const BackendOptions& options, Arena& arena);
  std::vector<KvPages> layers;
};

/// What operations on the compute stream share, one after the other.
struct Workspace {
  Workspace() = default;
  Workspace(const BackendOptions& options, Arena& arena);

  int mlp_rows = 0;              // rows of an MLP at once
  int vocab_rows = 0;            // rows of logits at once
  void* kv_rows = nullptr;       // [2, T, kv_heads * head_dim], on their way from or to the host
  void* out = nullptr;           // [T, H]
  void* inner = nullptr;         // [mlp_rows, widest MLP]
  float* inner_float = nullptr;  // [mlp_rows, widest MLP]
  void* gathered = nullptr;      // [mlp_rows, H], short runs of one expert's rows
  void* results = nullptr;       // [mlp_rows, H]
  void* head = nullptr;          // [vocab_rows, H]
  float* logits = nullptr;       // [vocab_rows, vocab]
  float* router = nullptr;       // [T, num_experts]
  std::int32_t* route_scratch = nullptr;
  float* attention = nullptr;
  void* gemm = nullptr;
  std::int32_t* pages = nullptr;  // [most_pages]
};

/// A chunk's own memory on the device: what survives from one operation to the next.
struct ChunkMemory {
  ChunkMemory() = default;
  ChunkMemory(const BackendOptions& options, Arena& arena);

  void* x = nullptr;                // [T, H]
  void* normed = nullptr;           // [T, H], x after a norm, see CudaChunk::normed_with
  void* qkv = nullptr;              // [T, (heads + 2 kv_heads) * head_dim]
  void* context = nullptr;          // [T, heads * head_dim]
  void* send = nullptr;             // [T * top_k, H]
  void* combined = nullptr;         // [T * top_k, H]
  std::int32_t* experts = nullptr;  // [T, top_k]
  float* weights = nullptr;         // [T, top_k]
  std::int32_t* slots = nullptr;    // [T, top_k]
  std::int32_t* counts = nullptr;   // [num_experts], in sending order
  std::byte* inputs = nullptr;      // what an upload brings
  std::byte* head = nullptr;        // what an upload for the head brings
  float* logprobs = nullptr;        // [T]
  SampledToken* sampled = nullptr;  // [T]
};

/// Pages of one sequence, at most.
std::int64_t most_pages(const BackendOptions& options);

/// Most bytes of one upload of a chunk's inputs.
std::size_t input_bytes(const BackendOptions& options);
/// Most bytes of one upload for the head: for each row what is done with it, and which it is.
std::size_t head_bytes(const BackendOptions& options);

/// Pinned memory that the host fills and a copy reads, twice, so that the next filling need not
/// wait for the last copy.
class UploadRing {
 public:
  explicit UploadRing(std::size_t bytes);
  /// Memory to fill; waits in the unlikely case that the copy before the last still reads it.
  std::byte* next();
  /// Copies `bytes` of what next() gave.
  void copy(const Stream& stream, void* to, std::size_t bytes);

 private:
  std::size_t bytes_;
  PinnedBuffer memory_;
  CudaEvent copied_[2];
  int slot_ = 0;
};

/// Where a chunk's uploaded inputs lie on the device.
struct ChunkInputs {
  const std::int32_t* tokens = nullptr;
  RowMap map;
  const AttentionTile* tiles = nullptr;
  const AttentionMerge* merges = nullptr;
  int num_wide = 0;
  int num_narrow = 0;
  int num_merges = 0;
};

class CudaChunk final : public Chunk {
 public:
  /// `account` is the backend's sum of chunk bytes; the chunk adds and subtracts its own.
  CudaChunk(const BackendOptions& options, int index, std::shared_ptr<std::int64_t> account);
  ~CudaChunk() override;
  void reserve_receive(std::int64_t rows) override;

  /// Copies token ids, positions, pages and attention's work to the device.
  void upload(const BackendOptions& options, int multiprocessors, const Stream& stream);

  int num_tokens() const { return static_cast<int>(tokens.size()); }

  mutable ChunkOrder order;  // advances also where x is only read
  ChunkMemory memory;
  ChunkInputs inputs;
  const float* normed_with = nullptr;  ///< weight of the norm that memory.normed holds x after
  DeviceBuffer inner;                  ///< of experts, where options.split_experts; see inner_bytes
  PinnedBuffer counts;                 ///< [num_experts], in sending order
  UploadRing head_uploads;
  PinnedBuffer sampled;  ///< [T], what the device chose, on its way to the caller
  CudaEvent computed{CudaEvent::Timing::off};  ///< the head's results, for their way to the host

 private:
  void take_inner();

  const BackendOptions& options_;
  std::shared_ptr<std::int64_t> account_;
  DeviceBuffer device_;
  DeviceBuffer received_;
  UploadRing uploads_;
  AttentionPlan plan_;
};

/// Of one row between ranks.
std::int64_t row_bytes(const BackendOptions& options);
/// Of both buffers for received rows together; each is half of it.
std::int64_t receive_bytes(std::int64_t rows, std::int64_t row_bytes);
/// Of the inner rows of this rank's experts, where as many rows come from other ranks; 0 unless
/// options.split_experts.
std::int64_t inner_bytes(const BackendOptions& options, std::int64_t receive_rows);

}  // namespace atl::compute::cuda
