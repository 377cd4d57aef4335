// The CPU backend as callers see it: checks on the calling thread, arithmetic on the worker.

#include <omp.h>

#include <array>
#include <atomic>
#include <memory>

#include "compute/cpu_layers.hpp"
#include "compute/error.hpp"

namespace atl::compute {

namespace {

constexpr std::array<const char*, 13> weight_names = {
    "embedding", "attention_norm", "qkv",  "q_norm",     "k_norm", "o", "ffn_norm", "router",
    "up",        "gate",           "down", "final_norm", "lm_head"};

struct Extent {
  std::int64_t rows;
  std::int64_t cols;
};

/// Rows and columns the model gives a weight; vectors are one row.
Extent extent_of(Weight weight, const ModelShape& shape, bool expert) {
  const std::int64_t hidden = shape.hidden;
  const std::int64_t inner = expert ? shape.moe_intermediate : shape.intermediate;
  const bool whole = shape.qk_norm == QkNorm::whole_row;
  switch (weight) {
    case Weight::embedding:
    case Weight::lm_head:
      return {shape.vocab, hidden};
    case Weight::attention_norm:
    case Weight::ffn_norm:
    case Weight::final_norm:
      return {1, hidden};
    case Weight::qkv:
      return {shape.q_width() + 2 * shape.kv_width(), hidden};
    case Weight::q_norm:
      return {1, whole ? shape.q_width() : shape.head_dim};
    case Weight::k_norm:
      return {1, whole ? shape.kv_width() : shape.head_dim};
    case Weight::o:
      return {hidden, shape.q_width()};
    case Weight::router:
      return {shape.num_experts, hidden};
    case Weight::up:
    case Weight::gate:
      return {inner, hidden};
    case Weight::down:
      break;
  }
  return {hidden, inner};
}

bool belongs_to_layer(Weight weight) {
  return weight != Weight::embedding && weight != Weight::final_norm && weight != Weight::lm_head;
}

bool is_mlp(Weight weight) {
  return weight == Weight::up || weight == Weight::gate || weight == Weight::down;
}

void check(const BackendOptions& options) {
  const ModelShape& shape = options.shape;
  require(shape.head_dim > 0 && shape.head_dim % 2 == 0 && shape.head_dim <= max_head_dim,
          "cannot compute attention with head_dim {} (the CPU kernels take even numbers up to {})",
          shape.head_dim, max_head_dim);
  require(
      shape.num_kv_heads > 0 && shape.num_heads > 0 && shape.num_heads % shape.num_kv_heads == 0,
      "cannot share {} key/value heads among {} query heads (not a divisor)", shape.num_kv_heads,
      shape.num_heads);
  require(options.page_tokens > 0 && options.page_tokens % panel_tokens == 0,
          "cannot use KV pages of {} tokens; use a multiple of {}", options.page_tokens,
          panel_tokens);
  require(shape.hidden > 0 && shape.vocab > 0 && shape.num_layers > 0 && shape.max_positions > 0,
          "cannot set up a model with hidden {}, vocabulary {}, {} layers and {} positions",
          shape.hidden, shape.vocab, shape.num_layers, shape.max_positions);
  require(shape.layer_is_dense.size() == static_cast<std::size_t>(shape.num_layers),
          "layer_is_dense has {} entries for {} layers", shape.layer_is_dense.size(),
          shape.num_layers);
  require(options.num_threads >= 1 && options.max_chunk_tokens >= 1 && options.num_pages >= 0 &&
              options.num_local_experts >= 0,
          "cannot run with {} threads, chunks of {} tokens and {} pages", options.num_threads,
          options.max_chunk_tokens, options.num_pages);
  require(shape.num_experts == 0 || (shape.top_k >= 1 && shape.top_k <= shape.num_experts),
          "cannot choose {} of {} experts", shape.top_k, shape.num_experts);
  require(options.send_order.size() == static_cast<std::size_t>(shape.num_experts),
          "send_order has {} entries for {} experts", options.send_order.size(), shape.num_experts);
}

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(const BackendOptions& options)
      : options_(options),
        layers_((check(options), options)),
        queue_([this] { omp_set_num_threads(options_.num_threads); },
               [this](const CpuOp& op) { layers_.execute(op); }) {
    omp_set_num_threads(options_.num_threads);  // finish() may compute on this thread
  }

  std::string description() const override { return layers_.description(); }

  void load_weight(Weight weight, int layer, int local_expert, const HostTensor& tensor) override;

  void finish_loading() override {
    run_on_worker([this] { layers_.prepare(); });
    memory_ = layers_.memory();
  }

  std::unique_ptr<Chunk> make_chunk() override {
    return std::make_unique<CpuChunk>(options_, chunk_bytes_);
  }

  Event embed(Chunk& chunk) override { return step(CpuOp::Kind::embed, chunk, 0); }
  Event attention(Chunk& chunk, int layer) override {
    return step(CpuOp::Kind::attention, chunk, layer);
  }
  Event mlp(Chunk& chunk, int layer) override { return step(CpuOp::Kind::mlp, chunk, layer); }
  Event route(Chunk& chunk, int layer) override { return step(CpuOp::Kind::route, chunk, layer); }
  Event merge(Chunk& chunk, int layer) override { return step(CpuOp::Kind::merge, chunk, layer); }

  Event experts(Chunk& chunk, int layer, std::span<const RowBlock> blocks) override {
    CpuOp op = op_of(CpuOp::Kind::experts, chunk, layer);
    op.blocks = blocks;
    return queue_.enqueue(op);
  }

  Event logits(Chunk& chunk, std::span<const std::int32_t> rows, float* logits) override {
    CpuOp op = op_of(CpuOp::Kind::logits, chunk, 0);
    op.rows = rows;
    op.out = logits;
    return queue_.enqueue(op);
  }

  Event logprobs(Chunk& chunk, std::span<const std::int32_t> rows,
                 std::span<const std::int32_t> targets, float* logprobs) override {
    require(rows.size() == targets.size(), "logprobs of {} rows got {} targets", rows.size(),
            targets.size());
    CpuOp op = op_of(CpuOp::Kind::logprobs, chunk, 0);
    op.rows = rows;
    op.targets = targets;
    op.out = logprobs;
    return queue_.enqueue(op);
  }

  Event save_x(const Chunk& chunk, void* x) override {
    // An operation may change its chunk; this one does not.
    CpuOp op = op_of(CpuOp::Kind::save_x, const_cast<Chunk&>(chunk), 0);
    op.x = x;
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

  Event host_task(const std::function<void()>& task) override {
    CpuOp op;
    op.task = &task;
    return queue_.enqueue(op);
  }

  bool done(Event event) override { return queue_.done(event); }
  void start() override { queue_.start(); }
  bool wait(Event event, int timeout_us) override { return queue_.wait(event, timeout_us); }
  void finish(Event event) override {
    // Several threads are a team that belongs to the worker.
    queue_.finish(event, options_.num_threads == 1);
  }
  Interval interval(Event event) const override { return queue_.interval(event); }

  Memory memory() const override {
    Memory memory = memory_;
    memory.buffers += *chunk_bytes_;
    return memory;
  }

 private:
  CpuOp op_of(CpuOp::Kind kind, Chunk& chunk, int layer) const {
    require(layer >= 0 && layer < options_.shape.num_layers, "there is no layer {}", layer);
    require(chunk.tokens.size() <= static_cast<std::size_t>(options_.max_chunk_tokens),
            "a chunk of {} tokens is larger than the {} it was made for", chunk.tokens.size(),
            options_.max_chunk_tokens);
    CpuOp op;
    op.kind = kind;
    op.chunk = &static_cast<CpuChunk&>(chunk);
    op.layer = layer;
    return op;
  }

  Event step(CpuOp::Kind kind, Chunk& chunk, int layer) {
    return queue_.enqueue(op_of(kind, chunk, layer));
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
    const Event event = host_task(task);
    queue_.finish(event, /*may_run_here=*/false);
  }

  const BackendOptions options_;
  CpuLayers layers_;
  Memory memory_;
  std::shared_ptr<std::int64_t> chunk_bytes_ = std::make_shared<std::int64_t>(0);
  CpuQueue queue_;  // last: its worker must stop before the rest goes
};

/// `tensor` as elements of type `to`; `buffer` holds them if they had to be converted.
const void* converted(const HostTensor& tensor, DType to, CpuIsa isa, AlignedBuffer& buffer) {
  if (tensor.dtype == to) return tensor.data;
  const std::int64_t count = tensor.rows * tensor.cols;
  AlignedBuffer floats;
  const void* from = tensor.data;
  if (tensor.dtype != DType::float32) {
    floats = AlignedBuffer(static_cast<std::size_t>(count) * sizeof(float));
    kernels_for(tensor.dtype, isa).to_float(from, floats.as<float>(), count);
    from = floats.data();
  }
  buffer = AlignedBuffer(static_cast<std::size_t>(count) * size_of(to));
  kernels_for(to, isa).from_float(static_cast<const float*>(from), buffer.data(), count);
  return buffer.data();
}

void CpuBackend::load_weight(Weight weight, int layer, int local_expert, const HostTensor& tensor) {
  const char* name = weight_names[static_cast<std::size_t>(weight)];
  const ModelShape& shape = options_.shape;
  require(belongs_to_layer(weight) ? layer >= 0 && layer < shape.num_layers : layer == -1,
          "weight {} cannot belong to layer {} of {}", name, layer, shape.num_layers);
  require(local_expert == -1 ||
              (is_mlp(weight) && local_expert >= 0 && local_expert < options_.num_local_experts),
          "weight {} cannot belong to local expert {} of {}", name, local_expert,
          options_.num_local_experts);
  const auto [rows, cols] = extent_of(weight, shape, local_expert >= 0);
  // A vector may come as one row or as one column.
  const bool fits = (tensor.rows == rows && tensor.cols == cols) ||
                    (rows == 1 && tensor.rows == cols && tensor.cols == 1);
  require(fits && tensor.data != nullptr,
          "weight {} of layer {} has shape [{}, {}], the configuration says [{}, {}]", name, layer,
          tensor.rows, tensor.cols, rows, cols);
  run_on_worker([&, num_rows = static_cast<int>(rows), num_cols = static_cast<int>(cols)] {
    AlignedBuffer buffer;
    const void* data = converted(tensor, options_.dtype, cpu_isa(), buffer);
    layers_.load(weight, layer, local_expert, data, num_rows, num_cols);
  });
}

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(const BackendOptions& options) {
  return std::make_unique<CpuBackend>(options);
}

}  // namespace atl::compute
