// The CUDA backend as callers see it: checks, and the seam's functions.

#include "compute/cuda/backend.hpp"

#include <algorithm>

#include "compute/cuda/error.hpp"
#include "compute/cuda/operations.hpp"
#include "compute/error.hpp"
#include "compute/loaded_weights.hpp"
#include "compute/loading.hpp"
#include "compute/memory_plan.hpp"
#include "compute/weight_cut.hpp"

namespace atl::compute {

namespace {

std::string gib(std::int64_t bytes) {
  return fmt::format("{:.2f} GiB", static_cast<double>(bytes) / (1 << 30));
}

/// Refuses what is larger than the share, with a table and what would fit.
void require_fit(const BackendOptions& options, const CudaShare& share) {
  const MemoryPlan need = cuda_memory_plan(options);
  const std::int64_t limit =
      share.memory_bytes > 0 ? share.memory_bytes : share.device.free_bytes / share.num_ranks;
  if (need.total() <= limit) return;
  const std::int64_t tokens = options.num_pages * options.page_tokens;
  const std::int64_t page_bytes = options.num_pages > 0 ? need.kv_cache / options.num_pages : 1;
  const std::int64_t for_pages = limit - need.weights - need.buffers();
  const std::int64_t pages = for_pages > 0 ? for_pages / std::max<std::int64_t>(page_bytes, 1) : 0;
  std::string advice =
      pages > 0 ? fmt::format("--kv-tokens {} would fit", pages * options.page_tokens)
                : std::string(
                      "no KV cache fits beside that; use more ranks (fewer experts each), fewer "
                      "ranks on one device, or a smaller --step-tokens");
  fail(
      "this rank's part does not fit on device {} ({}):\n"
      "  weights    {:>12}\n"
      "  KV cache   {:>12}  ({} tokens)\n"
      "  buffers    {:>12}  ({} chunks of up to {} tokens, room for {} from other ranks)\n"
      "  together   {:>12}\n"
      "  available  {:>12}  ({} free, for {} rank{})\n"
      "{}",
      share.device.index, share.device.name, gib(need.weights), gib(need.kv_cache), tokens,
      gib(need.buffers()), options.num_chunks, options.max_chunk_tokens, options.receive_rows,
      gib(need.total()), gib(limit), gib(share.device.free_bytes), share.num_ranks,
      share.num_ranks == 1 ? "" : "s", advice);
}

const BackendOptions& checked(const BackendOptions& options, const CudaShare& share) {
  require_fit(options, share);  // and what the plan requires
  return options;
}

class CudaBackend final : public Backend {
 public:
  CudaBackend(const BackendOptions& options, const CudaShare& share)
      : options_(options),
        share_(share),
        layers_(checked(options, share), share.device),
        loaded_(options.shape, options.part) {}

  std::string description() const override {
    std::string text = fmt::format("cuda: {} (device {}", share_.device.name, share_.device.index);
    if (share_.num_ranks > 1) text += fmt::format(", shared by {} ranks", share_.num_ranks);
    text += fmt::format("), {}, {} GEMMs", cuda::CudaGemm::library(), name_of(options_.dtype));
    if (options_.shape.activation == Activation::gelu_tanh) {
      text += layers_.fuses_gelu() ? ", GELU fused" : ", GELU by a kernel";
    }
    if (layers_.by_wgmma()) text += ", attention by wgmma";
    const cuda::CudaGemm& gemm = layers_.gemm();
    if (const std::string kinds = gemm.row_dependent_kinds(); !kinds.empty()) {
      text += fmt::format(
          ", rows of the GEMMs {} depend on how many come together (results depend on the layout)",
          kinds);
    }
    if (gemm.num_replaced() > 0) {
      text += fmt::format(", {} GEMMs refused and done by another algorithm", gemm.num_replaced());
    }
    if (gemm.num_replaced_untried() > 0) {
      text += fmt::format(", {} of them by one not tried before (results depend on the layout)",
                          gemm.num_replaced_untried());
    }
    return text;
  }

  void load_weight(Weight weight, int layer, int local_expert, const HostTensor& tensor) override {
    const cuda::Doing doing("loading weights", layer);
    const WeightInfo& info = loaded_.note(weight, layer, local_expert, tensor);
    AlignedBuffer cut;
    AlignedBuffer buffer;
    const HostTensor own = own_tensor(options_.shape, options_.part, info, tensor, cut);
    const WeightInfo own_info = own_weight(options_.shape, options_.part, info);
    if (info.coding.used()) {
      require(own.coding == info.coding, "internal: a weight of layer {} comes without its codes",
              layer);
      return layers_.load_codes(own_info, local_expert, own);
    }
    if (info.use == Use::matrix) {
      return layers_.load(own_info, local_expert, converted(own, options_.dtype, buffer));
    }
    AlignedBuffer floats;
    layers_.load(own_info, local_expert, vector_as_floats(options_, own, buffer, floats));
  }
  void finish_loading() override {
    loaded_.require_all();
    if (prepared_) return layers_.finish_weights();
    layers_.prepare();
    prepared_ = true;
  }

  std::unique_ptr<Chunk> make_chunk() override {
    const int index = num_chunks_++;
    return std::make_unique<cuda::CudaChunk>(options_of_chunk(options_, index), index, chunk_bytes_,
                                             memory_);
  }

  Event embed(Chunk& chunk) override { return layers_.embed(known(chunk)); }
  Event attention(Chunk& chunk, int layer, AttentionPart part) override {
    cuda::CudaChunk& mine = known(chunk, layer);
    place_attention(mine.options(), chunk, part);
    return layers_.attention(mine, layer, part);
  }
  Event mlp(Chunk& chunk, int layer) override { return layers_.mlp(known(chunk, layer), layer); }
  Event shared_expert(Chunk& chunk, int layer) override {
    return layers_.shared_expert(known(chunk, layer), layer);
  }
  Event route(Chunk& chunk, int layer, RouteTo to) override {
    if (to == RouteTo::nodes) require_across();
    return layers_.route(known(chunk, layer), layer, to);
  }
  Event regroup(Chunk& chunk, int layer, const NodeRows& rows) override {
    require_across();
    return layers_.regroup(known(chunk, layer), layer, rows);
  }
  Event experts(Chunk& chunk, int layer, std::span<const RowBlock> blocks,
                ExpertPart part) override {
    check_experts(options_, chunk, blocks, part);
    return layers_.experts(known(chunk, layer), layer, blocks, part);
  }
  Event fold(Chunk& chunk, int layer, const NodeRows& rows) override {
    require_across();
    return layers_.fold(known(chunk, layer), layer, rows);
  }
  Event merge(Chunk& chunk, int layer) override {
    return layers_.merge(known(chunk, layer), layer);
  }
  Event sample(Chunk& chunk, std::span<const std::int32_t> rows,
               std::span<const SamplingRequest> how, SampledToken* out) override {
    require(rows.size() == how.size(), "sampling of {} rows got {} requests", rows.size(),
            how.size());
    return layers_.sample(known(chunk), rows, how, out);
  }
  Event logits(Chunk& chunk, std::span<const std::int32_t> rows, float* logits) override {
    return layers_.logits(known(chunk), rows, logits);
  }
  Event logprobs(Chunk& chunk, std::span<const std::int32_t> rows,
                 std::span<const std::int32_t> targets, ScoredToken* out) override {
    require(rows.size() == targets.size(), "logprobs of {} rows got {} targets", rows.size(),
            targets.size());
    return layers_.logprobs(known(chunk), rows, targets, out);
  }
  Event save_x(const Chunk& chunk, float* x) override {
    return layers_.save_x(static_cast<const cuda::CudaChunk&>(chunk), x);
  }
  Event save_choices(const Chunk& chunk, std::int32_t* experts, float* weights,
                     float* given_up) override {
    return layers_.save_choices(static_cast<const cuda::CudaChunk&>(chunk), experts, weights,
                                given_up);
  }
  Event save_kv(int layer, std::span<const std::int32_t> pages, int first_position,
                int num_positions, void* keys, void* values) override {
    check_positions(layer, pages, first_position, num_positions);
    return layers_.save_kv(layer, pages, first_position, num_positions, keys, values);
  }
  Event load_kv(int layer, std::span<const std::int32_t> pages, int first_position,
                int num_positions, const void* keys, const void* values) override {
    check_positions(layer, pages, first_position, num_positions);
    return layers_.load_kv(layer, pages, first_position, num_positions, keys, values);
  }

  void start() override {}  // the device has begun already
  std::int64_t expert_bytes(int layer) const override { return layers_.expert_bytes(layer); }
  void read_expert(int layer, int local_expert, std::span<std::byte> bytes) override {
    const cuda::Doing doing("reading an expert", layer);
    layers_.read_expert(layer, local_expert, bytes);
  }
  void write_expert(int layer, int local_expert, std::span<const std::byte> bytes) override {
    const cuda::Doing doing("writing an expert", layer);
    layers_.write_expert(layer, local_expert, bytes);
  }
  void place_experts(int layer, std::span<const std::int32_t> experts,
                     const ExpertPlaces& places) override {
    options_.part.place_experts(layer, experts, places);
    layers_.place_experts(layer, experts, places);
  }

  bool done(Event event) override { return layers_.queue().done(event); }
  bool wait(Event event, int timeout_us) override {
    return layers_.queue().wait(event, timeout_us);
  }
  void finish(Event event) override {
    constexpr int long_us = 100000;
    while (!layers_.queue().wait(event, long_us)) {
    }
  }
  void settle() noexcept override {
    layers_.queue().settle();
    memory_.settle();
  }
  Interval interval(Event event) const override { return layers_.queue().interval(event); }
  std::size_t intervals(Event event, std::span<Interval> parts) const override {
    return layers_.queue().intervals(event, parts);
  }
  std::span<const char* const> stream_names() const override { return cuda::stream_names; }
  bool in_order() const override { return false; }
  DeviceMemory* device_memory() override { return &memory_; }

  Memory memory() const override {
    Memory memory = layers_.memory();
    memory.buffers += *chunk_bytes_ + memory_.retired_bytes();
    return memory;
  }

 private:
  cuda::CudaChunk& known(Chunk& chunk, int layer = 0) const {
    require(layer >= 0 && layer < options_.shape.num_layers, "there is no layer {}", layer);
    auto& mine = static_cast<cuda::CudaChunk&>(chunk);
    require(chunk.tokens.size() <= static_cast<std::size_t>(mine.max_tokens()),
            "a chunk of {} tokens is larger than the {} it was made for", chunk.tokens.size(),
            mine.max_tokens());
    return mine;
  }

  void require_across() const {
    require(options_.across, "internal: this backend was not set up to route to nodes");
  }

  void check_positions(int layer, std::span<const std::int32_t> pages, int first_position,
                       int num_positions) const {
    require(layer >= 0 && layer < options_.shape.num_layers, "there is no layer {}", layer);
    const std::int64_t held = static_cast<std::int64_t>(pages.size()) * options_.page_tokens;
    require(first_position >= 0 && num_positions >= 0 && first_position + num_positions <= held,
            "positions {} to {} do not lie in {} pages of {} tokens", first_position,
            first_position + num_positions, pages.size(), options_.page_tokens);
    for (const std::int32_t page : pages) {
      require(page >= 0 && page < options_.num_pages, "there is no KV page {} (of {})", page,
              options_.num_pages);
    }
  }

  BackendOptions options_;
  const CudaShare share_;
  int num_chunks_ = 0;
  std::shared_ptr<std::int64_t> chunk_bytes_ = std::make_shared<std::int64_t>(0);
  cuda::CudaMemory memory_;
  cuda::CudaLayers layers_;
  LoadedWeights loaded_;
  bool prepared_ = false;  // GEMM algorithms are chosen
};

}  // namespace

std::unique_ptr<Backend> make_cuda_backend(const BackendOptions& options, const CudaShare& share) {
  const cuda::Doing doing("setting up");
  return std::make_unique<CudaBackend>(options, share);
}

}  // namespace atl::compute
