#include "compute/cuda/operations.hpp"

#include <algorithm>
#include <cstring>

#include "compute/cuda/error.hpp"
#include "compute/error.hpp"

namespace atl::compute::cuda {

namespace {

/// Takes a part's memory at once, as large as its plan says.
template <class Part>
Part allocate(const BackendOptions& options, const char* what, DeviceBuffer& memory) {
  Arena plan;
  Part(options, plan);
  memory = DeviceBuffer(plan.bytes(), what);
  Arena arena(memory.data());
  return Part(options, arena);
}

template <class Part>
std::int64_t planned(const BackendOptions& options) {
  Arena plan;
  Part(options, plan);
  return static_cast<std::int64_t>(plan.bytes());
}

int count_multiprocessors() {
  int device = 0;
  int count = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device),
        "cudaDeviceGetAttribute");
  return count;
}

}  // namespace

Backend::Memory planned_memory(const BackendOptions& options) {
  Backend::Memory memory;
  memory.weights = planned<CudaWeights>(options);
  memory.kv_cache = planned<KvCache>(options);
  memory.buffers = planned<Workspace>(options) +
                   options.num_chunks * (planned<ChunkMemory>(options) +
                                         receive_bytes(options.receive_rows, row_bytes(options)));
  return memory;
}

CudaLayers::CudaLayers(const BackendOptions& options)
    : options_(options),
      shape_(options_.shape),
      dtype_(options.dtype),
      multiprocessors_(count_multiprocessors()),
      weights_(allocate<CudaWeights>(options, "the weights", weight_memory_)),
      kv_(allocate<KvCache>(options, "the KV cache", kv_memory_)),
      work_(allocate<Workspace>(options, "the workspace", workspace_memory_)),
      gemm_(options.dtype, work_.gemm),
      logits_free_(CudaEvent::Timing::off),
      kv_moved_(CudaEvent::Timing::off),
      bounce_(std::size_t{4} << 20),
      page_uploads_(static_cast<std::size_t>(most_pages(options)) * sizeof(std::int32_t)) {
  runs_.reserve(64);
}

Backend::Memory CudaLayers::memory() const {
  return {static_cast<std::int64_t>(weight_memory_.bytes()),
          static_cast<std::int64_t>(kv_memory_.bytes()),
          static_cast<std::int64_t>(workspace_memory_.bytes())};
}

CudaLayers::MlpKinds CudaLayers::add_mlp(const CudaMlp& mlp, int width) {
  using Output = CudaGemm::Output;
  MlpKinds kinds;
  kinds.width = width;
  const int rows = work_.mlp_rows;
  if (shape_.activation == Activation::swiglu) {
    kinds.up = gemm_.add(width, shape_.hidden, Output::activation, rows, mlp.up);
    kinds.gate = gemm_.add(width, shape_.hidden, Output::float32, rows, mlp.gate);
  } else {
    kinds.up = gemm_.add(width, shape_.hidden, Output::gelu, rows, mlp.up);
    kinds.up_float = gemm_.add(width, shape_.hidden, Output::float32, rows, mlp.up);
  }
  kinds.down = gemm_.add(shape_.hidden, width, Output::activation, rows, mlp.down);
  return kinds;
}

void CudaLayers::prepare() {
  weights_.finish(options_);
  using Output = CudaGemm::Output;
  const int tokens = options_.max_chunk_tokens;
  const CudaLayer& first = weights_.layers.front();
  qkv_ = gemm_.add(shape_.q_width() + 2 * shape_.kv_width(), shape_.hidden, Output::activation,
                   tokens, first.qkv);
  o_ = gemm_.add(shape_.hidden, shape_.q_width(), Output::activation, tokens, first.o);
  lm_head_ =
      gemm_.add(shape_.vocab, shape_.hidden, Output::float32, work_.vocab_rows, weights_.lm_head);
  for (int layer = 0; layer < shape_.num_layers; ++layer) {
    const CudaLayer& weights = weights_.layers[static_cast<std::size_t>(layer)];
    if (shape_.is_dense(layer)) {
      if (dense_.width == 0) dense_ = add_mlp(weights.dense, shape_.intermediate);
      continue;
    }
    if (router_ < 0) {
      router_ =
          gemm_.add(shape_.num_experts, shape_.hidden, Output::float32, tokens, weights.router);
    }
    if (expert_.width == 0 && !weights.experts.empty()) {
      expert_ = add_mlp(weights.experts.front(), shape_.moe_intermediate);
    }
  }
  const Stream& stream = queue_.stream(StreamId::compute);
  gemm_.prepare(stream);
  if (shape_.activation == Activation::gelu_tanh) {
    fuses_gelu_ = true;
    for (const MlpKinds* kinds : {&dense_, &expert_}) {
      if (kinds->width == 0) continue;
      fuses_gelu_ = fuses_gelu_ && gemm_.gelu_is_accurate(kinds->up, kinds->up_float, stream);
    }
    for (const MlpKinds* kinds : {&dense_, &expert_}) {
      if (kinds->width > 0) gemm_.leave_out(fuses_gelu_ ? kinds->up_float : kinds->up);
    }
  }
}

void CudaLayers::norm(const Stream& stream, CudaChunk& chunk, const float* weight) {
  if (chunk.normed_with == weight) return;
  rms_norm(stream.raw(), dtype_, chunk.memory.x, nullptr, weight, shape_.rms_eps,
           chunk.memory.normed, chunk.num_tokens(), shape_.hidden);
  chunk.normed_with = weight;
}

const float* CudaLayers::norm_after(int layer) const {
  const auto next = static_cast<std::size_t>(layer) + 1;
  return next < weights_.layers.size() ? weights_.layers[next].attention_norm : nullptr;
}

Event CudaLayers::embed(CudaChunk& chunk) {
  for (const std::int32_t token : chunk.tokens) {
    require(token >= 0 && token < shape_.vocab,
            "cannot embed token {} (the vocabulary has ids 0 to {}); check the request", token,
            shape_.vocab - 1);
  }
  Op op(queue_, "embed", -1, &chunk.order);
  if (chunk.tokens.empty()) {
    op.begin(StreamId::compute);
    return op.close();
  }
  chunk.upload(options_, multiprocessors_, op.begin(StreamId::copy));
  const Stream& stream = op.begin(StreamId::compute);
  cuda::embed(stream.raw(), dtype_, weights_.embedding, chunk.inputs.tokens, chunk.memory.x,
              chunk.num_tokens(), shape_.hidden);
  chunk.normed_with = nullptr;
  return op.close();
}

Event CudaLayers::attention(CudaChunk& chunk, int layer) {
  Op op(queue_, "attention", layer, &chunk.order);
  const Stream& stream = op.begin(StreamId::compute);
  const int rows = chunk.num_tokens();
  if (rows == 0) return op.close();
  const CudaLayer& weights = weights_.layers[static_cast<std::size_t>(layer)];
  const KvPages& kv = kv_.layers[static_cast<std::size_t>(layer)];
  norm(stream, chunk, weights.attention_norm);
  gemm_.run(stream, qkv_, weights.qkv, chunk.memory.normed, rows, work_.qkv);

  RopeArgs rope;
  rope.kv = kv;
  rope.map = chunk.inputs.map;
  rope.num_heads = shape_.num_heads;
  rope.num_rows = rows;
  rope.norm = shape_.qk_norm;
  rope.q_norm = weights.q_norm;
  rope.k_norm = weights.k_norm;
  rope.eps = shape_.rms_eps;
  rope.angles = weights_.angles;
  rope.qkv = work_.qkv;
  rope_and_store(stream.raw(), dtype_, rope);

  AttentionArgs args;
  args.kv = kv;
  args.map = chunk.inputs.map;
  args.num_heads = shape_.num_heads;
  args.num_rows = rows;
  args.qkv = work_.qkv;
  args.qkv_stride = shape_.q_width() + 2 * shape_.kv_width();
  args.out = work_.context;
  args.tiles = chunk.inputs.tiles;
  args.num_wide = chunk.inputs.num_wide;
  args.num_narrow = chunk.inputs.num_narrow;
  args.merges = chunk.inputs.merges;
  args.num_merges = chunk.inputs.num_merges;
  args.workspace = work_.attention;
  cuda::attention(stream.raw(), dtype_, args);

  gemm_.run(stream, o_, weights.o, work_.context, rows, work_.out);
  add_rms_norm(stream.raw(), dtype_, chunk.memory.x, work_.out, weights.ffn_norm, shape_.rms_eps,
               chunk.memory.normed, rows, shape_.hidden);
  chunk.normed_with = weights.ffn_norm;
  return op.close();
}

void CudaLayers::run_mlp(const Stream& stream, const MlpKinds& kinds, const CudaMlp& mlp,
                         const void* in, std::int64_t rows, void* out) {
  const std::int64_t count = rows * kinds.width;
  if (shape_.activation == Activation::swiglu) {
    gemm_.run(stream, kinds.up, mlp.up, in, rows, work_.inner);
    gemm_.run(stream, kinds.gate, mlp.gate, in, rows, work_.inner_float);
    swiglu(stream.raw(), dtype_, work_.inner_float, work_.inner, work_.inner, count);
  } else if (fuses_gelu_) {
    gemm_.run(stream, kinds.up, mlp.up, in, rows, work_.inner);
  } else {
    gemm_.run(stream, kinds.up_float, mlp.up, in, rows, work_.inner_float);
    gelu(stream.raw(), dtype_, work_.inner_float, work_.inner, count);
  }
  gemm_.run(stream, kinds.down, mlp.down, work_.inner, rows, out);
}

Event CudaLayers::mlp(CudaChunk& chunk, int layer) {
  Op op(queue_, "mlp", layer, &chunk.order);
  const Stream& stream = op.begin(StreamId::compute);
  const int rows = chunk.num_tokens();
  if (rows == 0) return op.close();
  const CudaLayer& weights = weights_.layers[static_cast<std::size_t>(layer)];
  norm(stream, chunk, weights.ffn_norm);
  const auto at = [this](void* base, int row) {
    return static_cast<std::byte*>(base) + static_cast<std::size_t>(row) * row_bytes();
  };
  for (int first = 0; first < rows; first += work_.mlp_rows) {
    run_mlp(stream, dense_, weights.dense, at(chunk.memory.normed, first),
            std::min(work_.mlp_rows, rows - first), at(work_.out, first));
  }
  const float* const next = norm_after(layer);
  add_rms_norm(stream.raw(), dtype_, chunk.memory.x, work_.out, next, shape_.rms_eps,
               chunk.memory.normed, rows, shape_.hidden);
  chunk.normed_with = next;
  return op.close();
}

/// The counts reach the host while the rows are packed.
Event CudaLayers::route(CudaChunk& chunk, int layer) {
  Op op(queue_, "route", layer, &chunk.order);
  const Stream& stream = op.begin(StreamId::compute);
  const int rows = chunk.num_tokens();
  const auto num_experts = static_cast<std::size_t>(shape_.num_experts);
  if (rows == 0) {  // no operation writes the counts meanwhile: the one before has been used
    std::fill_n(chunk.counts.as<std::int32_t>(), num_experts, 0);
    return op.close();
  }
  const CudaLayer& weights = weights_.layers[static_cast<std::size_t>(layer)];
  norm(stream, chunk, weights.ffn_norm);
  gemm_.run(stream, router_, weights.router, chunk.memory.normed, rows, work_.router);
  RouteArgs args;
  args.logits = work_.router;
  args.send_order = weights_.send_order;
  args.num_tokens = rows;
  args.num_experts = shape_.num_experts;
  args.top_k = shape_.top_k;
  args.renormalise = shape_.norm_topk_prob;
  args.experts = chunk.memory.experts;
  args.weights = chunk.memory.weights;
  args.slots = chunk.memory.slots;
  args.counts = chunk.memory.counts;
  args.scratch = work_.route_scratch;
  cuda::route(stream.raw(), args);

  const Stream& copying = op.begin(StreamId::copy);
  check(cudaMemcpyAsync(chunk.counts.data(), chunk.memory.counts,
                        num_experts * sizeof(std::int32_t), cudaMemcpyDeviceToHost, copying.raw()),
        "cudaMemcpyAsync");
  const Stream& packing = op.begin(StreamId::pack);
  pack(packing.raw(), dtype_, chunk.memory.normed, chunk.memory.slots, chunk.memory.send, rows,
       shape_.top_k, shape_.hidden);
  return op.close();
}

/// Joins blocks of one expert that are adjacent: where a rank has one expert, all rows from other
/// ranks are, and only its own lie elsewhere.
void CudaLayers::collect_runs(std::span<const RowBlock> blocks) {
  runs_.clear();
  for (const RowBlock& block : blocks) {
    if (block.num_rows == 0) continue;
    auto* in = static_cast<std::byte*>(const_cast<void*>(block.in));
    auto* out = static_cast<std::byte*>(block.out);
    const auto before = std::find_if(runs_.begin(), runs_.end(), [&](const Run& run) {
      const auto bytes = static_cast<std::size_t>(run.rows) * row_bytes();
      return run.in + bytes == in && run.out + bytes == out;
    });
    if (before != runs_.end()) {
      before->rows += block.num_rows;
    } else {
      runs_.push_back({in, out, block.num_rows});
    }
  }
}

void CudaLayers::run_gathered(const Stream& stream, const CudaMlp& mlp, std::span<const Run> runs,
                              std::int64_t rows) {
  const auto move = [&](void* to, const void* from, std::int64_t count) {
    check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(count) * row_bytes(),
                          cudaMemcpyDeviceToDevice, stream.raw()),
          "cudaMemcpyAsync");
  };
  auto* at = static_cast<std::byte*>(work_.gathered);
  for (const Run& run : runs) {
    move(at, run.in, run.rows);
    at += static_cast<std::size_t>(run.rows) * row_bytes();
  }
  run_mlp(stream, expert_, mlp, work_.gathered, rows, work_.results);
  at = static_cast<std::byte*>(work_.results);
  for (const Run& run : runs) {
    move(run.out, at, run.rows);
    at += static_cast<std::size_t>(run.rows) * row_bytes();
  }
}

/// A GEMM of few rows takes as long as reading the weights, and one of some hundred does not fill
/// the device: short runs are gathered, as many as there is memory for, and long ones computed
/// where they lie.
void CudaLayers::run_expert(const Stream& stream, const CudaMlp& mlp) {
  constexpr std::int64_t long_run = 1024;
  const auto longs = std::partition(runs_.begin(), runs_.end(),
                                    [](const Run& run) { return run.rows < long_run; });
  for (auto begin = runs_.begin(); begin != runs_.end();) {
    std::int64_t rows = 0;
    auto end = begin;
    while (end < longs && rows + end->rows <= work_.mlp_rows) rows += (end++)->rows;
    if (end - begin > 1) {
      run_gathered(stream, mlp, {begin, end}, rows);
      begin = end;
      continue;
    }
    for (std::int64_t first = 0; first < begin->rows; first += work_.mlp_rows) {
      const auto offset = static_cast<std::size_t>(first) * row_bytes();
      run_mlp(stream, expert_, mlp, begin->in + offset,
              std::min<std::int64_t>(work_.mlp_rows, begin->rows - first), begin->out + offset);
    }
    ++begin;
  }
}

Event CudaLayers::experts(CudaChunk& chunk, int layer, std::span<const RowBlock> blocks) {
  Op op(queue_, "experts", layer, &chunk.order);
  const Stream& stream = op.begin(StreamId::compute);
  const CudaLayer& weights = weights_.layers[static_cast<std::size_t>(layer)];
  while (!blocks.empty()) {
    const std::int32_t expert = blocks.front().local_expert;
    const auto end = std::find_if(blocks.begin(), blocks.end(), [expert](const RowBlock& block) {
      return block.local_expert != expert;
    });
    const auto count = static_cast<std::size_t>(end - blocks.begin());
    collect_runs(blocks.first(count));
    run_expert(stream, weights.experts[static_cast<std::size_t>(expert)]);
    blocks = blocks.subspan(count);
  }
  return op.close();
}

Event CudaLayers::merge(CudaChunk& chunk, int layer) {
  Op op(queue_, "merge", layer, &chunk.order);
  const Stream& stream = op.begin(StreamId::pack);
  if (chunk.num_tokens() == 0) return op.close();
  const float* const next = norm_after(layer);
  cuda::merge(stream.raw(), dtype_, chunk.memory.x, chunk.memory.combined, chunk.memory.slots,
              chunk.memory.weights, chunk.num_tokens(), shape_.top_k, shape_.hidden, next,
              shape_.rms_eps, chunk.memory.normed);
  chunk.normed_with = next;
  return op.close();
}

}  // namespace atl::compute::cuda
