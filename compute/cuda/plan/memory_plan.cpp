#include "compute/memory_plan.hpp"

#include "compute/cuda/plan/attention_plan.hpp"
#include "compute/cuda/plan/check_shape.hpp"
#include "compute/cuda/plan/chunk_memory.hpp"
#include "compute/cuda/plan/kv.hpp"
#include "compute/cuda/plan/weight_memory.hpp"
#include "compute/cuda/plan/workspace.hpp"
#include "compute/loading.hpp"

namespace atl::compute {

namespace {

template <class Part>
std::int64_t planned(const BackendOptions& options) {
  return static_cast<std::int64_t>(cuda::planned_bytes<Part>(options));
}

/// What a chunk takes for rows from other ranks.
std::int64_t received_bytes(const BackendOptions& options) {
  const ForwardRoom room = cuda::first_forward_room(options);
  cuda::Arena forwarded;
  cuda::ForwardMemory(options, forwarded, room);
  cuda::Arena experts;
  cuda::ExpertMemory(options, experts, options.expert_room);
  return static_cast<std::int64_t>(experts.bytes()) +
         cuda::receive_bytes(options.receive_rows, cuda::row_bytes(options)) +
         cuda::inner_bytes(options, options.receive_rows, room.forwarded) +
         static_cast<std::int64_t>(forwarded.bytes());
}

}  // namespace

MemoryPlan cuda_memory_plan(const BackendOptions& options) {
  check_options(options, cuda::max_head_dim);
  cuda::check_shape(options);
  MemoryPlan plan;
  plan.weights = planned<cuda::WeightMemory>(options);
  plan.kv_cache = planned<cuda::KvCache>(options);
  plan.workspace = planned<cuda::Workspace>(options);
  for (int chunk = 0; chunk < options.num_chunks; ++chunk) {
    const BackendOptions of_chunk = options_of_chunk(options, chunk);
    plan.chunks += planned<cuda::ChunkMemory>(of_chunk);
    plan.received += received_bytes(of_chunk);
  }
  return plan;
}

}  // namespace atl::compute
