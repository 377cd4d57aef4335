#pragma once
// A chunk on the device, and what is uploaded for it.

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>

#include "compute/backend.hpp"
#include "compute/cuda/kernels.hpp"
#include "compute/cuda/memory.hpp"
#include "compute/cuda/plan/chunk_memory.hpp"
#include "compute/cuda/plan/chunk_plan.hpp"
#include "compute/cuda/queue.hpp"
#include "compute/cuda/upload_ring.hpp"

namespace atl::compute::cuda {

/// Where a chunk's uploaded inputs lie on the device.
struct ChunkInputs {
  const std::int32_t* tokens = nullptr;
  RowMap map;
  const AttentionTile* tiles = nullptr;
  const AttentionMerge* merges = nullptr;
  const std::int32_t* generated = nullptr;  ///< rows that attend to latents
  RowMap generated_map;                     ///< of these
};

class CudaChunk final : public Chunk {
 public:
  /// `account` is the backend's sum of chunk bytes; the chunk adds and subtracts its own. What held
  /// rows between ranks goes to `retired` when larger buffers take its place.
  CudaChunk(const BackendOptions& options, int index, std::shared_ptr<std::int64_t> account,
            CudaMemory& retired);
  ~CudaChunk() override;
  void reserve_receive(std::int64_t rows) override;
  void reserve_across(const NodeRows& rows, std::int64_t forwarded) override;
  void reserve_experts(const ExpertRoom& room) override;

  /// The counts of a route of `num_rows` tokens: where they will be, and their values where the
  /// device does not count.
  void set_counts(const ExpertPlaces& places, int num_rows);

  /// Copies token ids, positions, pages and attention's work to the device; see ChunkPlan::cut().
  void upload(int multiprocessors, bool by_wgmma, const Stream& stream);

  /// Copies `forced` to memory.experts and memory.weights.
  void upload_forced(const Stream& stream);
  /// Copies the offsets of each row, and has room for what they give up.
  void upload_offsets(const Stream& stream);
  const float* row_offsets() const { return static_cast<const float*>(offsets_.data()); }
  float* given_up() const { return static_cast<float*>(given_up_.data()); }

  /// Of the last upload.
  const ChunkPlan& plan() const { return plan_; }
  const BackendOptions& options() const { return options_; }
  int max_tokens() const { return options_.max_chunk_tokens; }
  int num_tokens() const { return static_cast<int>(tokens.size()); }
  /// The chunk's, or of all ranks that share attention.
  int attention_rows() const {
    return options_.part.attention.shared() ? static_cast<int>(all_rows) : num_tokens();
  }

  mutable ChunkOrder order;  // advances also where x is only read
  ChunkMemory memory;
  ForwardMemory forward;
  RouteTo routed_to = RouteTo::experts;  ///< by the last route
  ChunkInputs inputs;
  const float* normed_with = nullptr;  ///< weight of the norm that memory.normed holds x after
  DeviceBuffer inner;                  ///< of experts, where options.split_experts; see inner_bytes
  PinnedBuffer counts;                 ///< see RouteArgs::counts
  UploadRing head_uploads;
  PinnedBuffer sampled;  ///< [most_outcomes()], what the device chose, on its way to the caller
  CudaEvent computed{CudaEvent::Timing::off};  ///< the head's results, for their way to the host

 private:
  void retire(DeviceBuffer& buffer) { retired_.retire(std::exchange(buffer, DeviceBuffer())); }
  /// Sets their size; the account leaves them out meanwhile.
  void take_inner();
  void take_forward(const ForwardRoom& room);
  void take_experts(const ExpertRoom& room);
  std::int64_t bytes() const;

  const BackendOptions options_;  // of this chunk
  std::shared_ptr<std::int64_t> account_;
  CudaMemory& retired_;
  DeviceBuffer device_;
  DeviceBuffer received_;
  DeviceBuffer forward_;
  DeviceBuffer experts_;
  ForwardRoom room_;
  ExpertRoom expert_room_;
  UploadRing uploads_;
  std::optional<UploadRing> forced_uploads_;  // since the first forced choice
  std::optional<UploadRing> offset_uploads_;  // since the first offsets, with what follows
  DeviceBuffer offsets_;                      // [max tokens, experts]
  DeviceBuffer given_up_;                     // [max tokens]
  ChunkPlan plan_;
};

}  // namespace atl::compute::cuda
