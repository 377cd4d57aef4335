// The CPU backend as callers see it: checks on the calling thread, arithmetic on the worker.

#include <omp.h>

#include <memory>

#include "compute/cpu/operations.hpp"
#include "compute/error.hpp"
#include "compute/loaded_weights.hpp"
#include "compute/loading.hpp"
#include "compute/weight_cut.hpp"

namespace atl::compute {

namespace {

void check(const BackendOptions& options) {
  check_options(options, max_head_dim);
  require(options.page_tokens % panel_tokens == 0,
          "cannot use KV pages of {} tokens; use a multiple of {}", options.page_tokens,
          panel_tokens);
  require(options.shape.router.groups <= max_router_groups,
          "cannot choose among {} groups of experts (at most {})", options.shape.router.groups,
          max_router_groups);
}

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(const BackendOptions& options)
      : options_(options),
        layers_((check(options), options)),
        loaded_(options.shape, options.part),
        queue_([this] { omp_set_num_threads(options_.num_threads); },
               [this](const CpuOp& op) { layers_.execute(op); }) {
    omp_set_num_threads(options_.num_threads);  // finish() may compute on this thread
  }

  std::string description() const override { return layers_.description(); }

  void load_weight(Weight weight, int layer, int local_expert, const HostTensor& tensor) override;

  void finish_loading() override {
    loaded_.require_all();
    if (prepared_) return;
    run_on_worker([this] { layers_.prepare(); });
    memory_ = layers_.memory();
    prepared_ = true;
  }

  std::unique_ptr<Chunk> make_chunk() override {
    return std::make_unique<CpuChunk>(options_of_chunk(options_, num_chunks_++), chunk_bytes_);
  }

  Event embed(Chunk& chunk) override { return step(CpuOp::Kind::embed, chunk, 0); }
  Event attention(Chunk& chunk, int layer, AttentionPart part) override {
    CpuOp op = op_of(CpuOp::Kind::attention, chunk, layer);
    place_attention(op.chunk->options(), chunk, part);
    op.attention_part = part;
    return queue_.enqueue(op);
  }
  Event mlp(Chunk& chunk, int layer) override { return step(CpuOp::Kind::mlp, chunk, layer); }
  Event shared_expert(Chunk& chunk, int layer) override {
    return step(CpuOp::Kind::shared_expert, chunk, layer);
  }
  Event route(Chunk& chunk, int layer, RouteTo to) override {
    CpuOp op = op_of(CpuOp::Kind::route, chunk, layer);
    op.to = to;
    return queue_.enqueue(op);
  }
  Event regroup(Chunk& chunk, int layer, const NodeRows& rows) override {
    return forward(CpuOp::Kind::regroup, chunk, layer, rows);
  }
  Event fold(Chunk& chunk, int layer, const NodeRows& rows) override {
    return forward(CpuOp::Kind::fold, chunk, layer, rows);
  }
  Event merge(Chunk& chunk, int layer) override { return step(CpuOp::Kind::merge, chunk, layer); }

  Event experts(Chunk& chunk, int layer, std::span<const RowBlock> blocks,
                ExpertPart part) override {
    CpuOp op = op_of(CpuOp::Kind::experts, chunk, layer);
    check_experts(options_, chunk, blocks, part);
    op.expert_part = part;
    op.blocks = blocks;
    return queue_.enqueue(op);
  }

  Event sample(Chunk& chunk, std::span<const std::int32_t> rows,
               std::span<const SamplingRequest> how, SampledToken* out) override {
    require(rows.size() == how.size(), "sampling of {} rows got {} requests", rows.size(),
            how.size());
    CpuOp op = op_of(CpuOp::Kind::sample, chunk, 0);
    op.rows = rows;
    op.how = how;
    op.sampled = out;
    return queue_.enqueue(op);
  }

  Event logits(Chunk& chunk, std::span<const std::int32_t> rows, float* logits) override {
    CpuOp op = op_of(CpuOp::Kind::logits, chunk, 0);
    op.rows = rows;
    op.out = logits;
    return queue_.enqueue(op);
  }

  Event logprobs(Chunk& chunk, std::span<const std::int32_t> rows,
                 std::span<const std::int32_t> targets, ScoredToken* out) override {
    require(rows.size() == targets.size(), "logprobs of {} rows got {} targets", rows.size(),
            targets.size());
    CpuOp op = op_of(CpuOp::Kind::logprobs, chunk, 0);
    op.rows = rows;
    op.targets = targets;
    op.scored = out;
    return queue_.enqueue(op);
  }

  Event save_x(const Chunk& chunk, float* x) override {
    // An operation may change its chunk; this one does not.
    CpuOp op = op_of(CpuOp::Kind::save_x, const_cast<Chunk&>(chunk), 0);
    op.x = x;
    return queue_.enqueue(op);
  }

  Event save_choices(const Chunk& chunk, std::int32_t* experts, float* weights,
                     float* given_up) override {
    CpuOp op = op_of(CpuOp::Kind::save_choices, const_cast<Chunk&>(chunk), 0);
    op.experts = experts;
    op.out = weights;
    op.given_up = given_up;
    return queue_.enqueue(op);
  }

  Event save_kv(int layer, std::span<const std::int32_t> pages, int first_position,
                int num_positions, void* keys, void* values) override {
    return move_kv(CpuOp::Kind::save_kv, layer, pages, first_position, num_positions, keys, values);
  }
  Event load_kv(int layer, std::span<const std::int32_t> pages, int first_position,
                int num_positions, const void* keys, const void* values) override {
    return move_kv(CpuOp::Kind::load_kv, layer, pages, first_position, num_positions,
                   const_cast<void*>(keys), const_cast<void*>(values));
  }

  std::int64_t expert_bytes(int layer) const override { return layers_.expert_bytes(layer); }
  void read_expert(int layer, int local_expert, std::span<std::byte> bytes) override {
    layers_.read_expert(layer, local_expert, bytes);
  }
  void write_expert(int layer, int local_expert, std::span<const std::byte> bytes) override {
    layers_.write_expert(layer, local_expert, bytes);
  }
  void place_experts(int layer, std::span<const std::int32_t> experts,
                     const ExpertPlaces& places) override {
    options_.part.place_experts(layer, experts, places);
    layers_.place_experts(layer, experts, places);
  }

  bool done(Event event) override { return queue_.done(event); }
  void start() override { queue_.start(); }
  bool wait(Event event, int timeout_us) override { return queue_.wait(event, timeout_us); }
  void finish(Event event) override { queue_.finish(event, /*may_run_here=*/true); }
  void settle() noexcept override { queue_.settle(); }
  Interval interval(Event event) const override { return queue_.interval(event); }

  Memory memory() const override {
    Memory memory = memory_;
    memory.buffers += *chunk_bytes_;
    return memory;
  }

 private:
  CpuOp op_of(CpuOp::Kind kind, Chunk& chunk, int layer) const {
    require(layer >= 0 && layer < options_.shape.num_layers, "there is no layer {}", layer);
    CpuOp op;
    op.kind = kind;
    op.chunk = &static_cast<CpuChunk&>(chunk);
    require(op.chunk->num_tokens() <= op.chunk->max_tokens(),
            "a chunk of {} tokens is larger than the {} it was made for", op.chunk->num_tokens(),
            op.chunk->max_tokens());
    op.layer = layer;
    return op;
  }

  Event step(CpuOp::Kind kind, Chunk& chunk, int layer) {
    return queue_.enqueue(op_of(kind, chunk, layer));
  }

  Event forward(CpuOp::Kind kind, Chunk& chunk, int layer, const NodeRows& rows) {
    CpuOp op = op_of(kind, chunk, layer);
    op.node_rows = rows;
    return queue_.enqueue(op);
  }

  Event move_kv(CpuOp::Kind kind, int layer, std::span<const std::int32_t> pages, int first,
                int count, void* keys, void* values) {
    require(layer >= 0 && layer < options_.shape.num_layers, "there is no layer {}", layer);
    const auto held = static_cast<std::int64_t>(pages.size()) * options_.page_tokens;
    require(first >= 0 && count >= 0 && std::int64_t{first} + count <= held,
            "positions {} to {} are not in {} KV pages", first, std::int64_t{first} + count,
            pages.size());
    CpuOp op;
    op.kind = kind;
    op.layer = layer;
    op.pages = pages;
    op.first_position = first;
    op.num_positions = count;
    op.keys = keys;
    op.values = values;
    return queue_.enqueue(op);
  }

  /// Everything that touches oneDNN runs on the worker, whose OpenMP team size is set.
  void run_on_worker(const std::function<void()>& task) {
    CpuOp op;
    op.task = &task;
    queue_.finish(queue_.enqueue(op), /*may_run_here=*/false);
  }

  BackendOptions options_;
  int num_chunks_ = 0;  // made so far
  CpuLayers layers_;
  LoadedWeights loaded_;
  bool prepared_ = false;  // all that is made once, for any weights
  Memory memory_;
  std::shared_ptr<std::int64_t> chunk_bytes_ = std::make_shared<std::int64_t>(0);
  CpuQueue queue_;  // last: its worker must stop before the rest goes
};

void CpuBackend::load_weight(Weight weight, int layer, int local_expert, const HostTensor& tensor) {
  const WeightInfo& info = loaded_.note(weight, layer, local_expert, tensor);
  run_on_worker([&] {
    AlignedBuffer cut;
    AlignedBuffer buffer;
    const HostTensor own = own_tensor(options_.shape, options_.part, info, tensor, cut);
    const WeightInfo own_info = own_weight(options_.shape, options_.part, info);
    if (own.coding.used()) return layers_.load_codes(own_info, local_expert, own);
    if (info.use == Use::matrix) {
      return layers_.load(own_info, local_expert, converted(own, options_.dtype, buffer));
    }
    AlignedBuffer floats;
    layers_.load_vector(own_info, local_expert, vector_as_floats(options_, own, buffer, floats));
  });
}

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(const BackendOptions& options) {
  return std::make_unique<CpuBackend>(options);
}

}  // namespace atl::compute
