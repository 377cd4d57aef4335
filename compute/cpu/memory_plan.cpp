#include "compute/memory_plan.hpp"

#include <map>
#include <vector>

#include "compute/cpu/chunk_memory.hpp"
#include "compute/cpu/gemm.hpp"
#include "compute/cpu/kv.hpp"
#include "compute/cpu/operations.hpp"
#include "compute/cpu/workspace.hpp"
#include "compute/weight_cut.hpp"

namespace atl::compute {

namespace {

template <class Part>
std::int64_t planned(const BackendOptions& options) {
  HostArena arena(HostArena::Mode::count);
  Part(options, arena);
  return arena.bytes();
}

/// Bytes of the weights, and of what their GEMMs share.
class WeightSums {
 public:
  explicit WeightSums(const BackendOptions& options)
      : options_(options),
        gemm_(make_gemm(options.shape, options.dtype, options.num_threads, expected_cpu_isa())) {}

  void add(const WeightInfo& info) {
    if (info.use == Use::vector) {
      weights_ += info.rows * static_cast<std::int64_t>(sizeof(float));
    } else if (info.id == Weight::k_up || info.id == Weight::v_up) {
      add_heads(info);
    } else if (info.id == Weight::embedding) {
      weights_ += info.num_elements() * static_cast<std::int64_t>(size_of(options_.dtype));
    } else {
      weights_ += packed_bytes(info);
    }
  }
  std::int64_t weights() const { return weights_; }
  std::int64_t gemm_buffers() const { return gemm_->buffer_bytes(uses_); }

 private:
  /// Latent attention's, packed by heads, and those of keys also the other way round.
  void add_heads(const WeightInfo& info) {
    const int heads = own_heads(options_.shape, options_.part.attention).num_heads;
    const GemmUse up{static_cast<int>(info.rows) / heads, static_cast<int>(info.cols),
                     Finish::rounded};
    const GemmUse down{up.k, up.n, Finish::rounded};
    weights_ += heads * gemm_->packed_bytes(up.n, up.k);
    uses_.push_back(up);
    if (info.id != Weight::k_up) return;
    weights_ += heads * gemm_->packed_bytes(down.n, down.k);
    uses_.push_back(down);
  }

  /// Asks once for all weights of one kind.
  std::int64_t packed_bytes(const WeightInfo& info) {
    const int parts = num_parts(info.id, options_);
    const GemmUse use{static_cast<int>(info.rows) / parts, static_cast<int>(info.cols),
                      finish_of(info.id, options_), info.coding};
    const auto [found, is_new] = packed_.try_emplace(use, 0);
    if (is_new) {
      found->second = use.coding.used() ? gemm_->bytes_of_codes(use.n, use.k, use.coding)
                                        : gemm_->packed_bytes(use.n, use.k);
      uses_.push_back(use);
      if (parts > 1) uses_.push_back({use.n, use.k, finish_of_a_part, use.coding});
    }
    return parts * found->second;
  }

  const BackendOptions& options_;
  std::unique_ptr<Gemm> gemm_;
  std::int64_t weights_ = 0;
  std::map<GemmUse, std::int64_t> packed_;
  std::vector<GemmUse> uses_;
};

}  // namespace

std::int64_t cpu_kv_bytes(const BackendOptions& options) {
  return planned<CpuKvCache>(options);
}

MemoryPlan cpu_memory_plan(const BackendOptions& options) {
  WeightSums sums(options);
  for_each_weight(options.shape, options.part, [&](const WeightInfo& info, int, int) {
    sums.add(own_weight(options.shape, options.part, info));
  });
  MemoryPlan plan;
  plan.weights = sums.weights();
  plan.kv_cache = cpu_kv_bytes(options);
  plan.workspace = planned<CpuWorkspace>(options) + sums.gemm_buffers();
  for (int chunk = 0; chunk < options.num_chunks; ++chunk) {
    const BackendOptions of_chunk = options_of_chunk(options, chunk);
    plan.chunks += planned<CpuChunkMemory>(of_chunk);
    plan.received += receive_bytes(options, grown_receive_capacity(options.receive_rows, 0));
    if (options.part.expert_share.shared()) {
      HostArena arena(HostArena::Mode::count);
      CpuExpertMemory(options, arena,
                      {grown_receive_capacity(options.expert_room.all, 0),
                       grown_receive_capacity(options.expert_room.own, 0)});
      plan.received += arena.bytes();
    }
    if (!options.across) continue;
    HostArena arena(HostArena::Mode::count);
    CpuForwardMemory(of_chunk, arena, even_forward_room(of_chunk));
    plan.received += arena.bytes();
  }
  return plan;
}

}  // namespace atl::compute
