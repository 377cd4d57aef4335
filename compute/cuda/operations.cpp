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
  memory = DeviceBuffer(planned_bytes<Part>(options), what);
  Arena arena(memory.data());
  return Part(options, arena);
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
  finish_weights();
  using Output = CudaGemm::Output;
  const int tokens = options_.max_chunk_tokens;
  const CudaLayer& first = weights_.layers[static_cast<std::size_t>(options_.part.first_layer)];
  qkv_ = gemm_.add(shape_.q_width() + 2 * shape_.kv_width(), shape_.hidden, Output::activation,
                   tokens, first.qkv);
  o_ = gemm_.add(shape_.hidden, shape_.q_width(), Output::activation, tokens, first.o);
  if (options_.part.end_layer == shape_.num_layers) {
    lm_head_ =
        gemm_.add(shape_.vocab, shape_.hidden, Output::float32, work_.vocab_rows, weights_.lm_head);
  }
  for (int layer = options_.part.first_layer; layer < options_.part.end_layer; ++layer) {
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
  chunk.upload(multiprocessors_, op.begin(StreamId::copy));
  const Stream& stream = op.begin(StreamId::compute);
  cuda::embed(stream.raw(), dtype_, weights_.embedding, chunk.inputs.tokens, chunk.memory.x,
              chunk.num_tokens(), shape_.hidden);
  chunk.normed_with = nullptr;
  return op.close();
}

Event CudaLayers::attention(CudaChunk& chunk, int layer, AttentionPart part) {
  Op op(queue_, "attention", layer, &chunk.order);
  const Stream& stream = op.begin(StreamId::compute);
  const int rows = chunk.num_tokens();
  if (rows == 0) return op.close();
  const CudaLayer& weights = weights_.layers[static_cast<std::size_t>(layer)];
  const bool all = part == AttentionPart::all;
  if (all || part == AttentionPart::project) {
    norm(stream, chunk, weights.attention_norm);
    gemm_.run(stream, qkv_, weights.qkv, chunk.memory.normed, rows, chunk.memory.qkv);
  }
  if (all || part == AttentionPart::attend) attend(stream, chunk, layer);
  if (all || part == AttentionPart::output) {
    gemm_.run(stream, o_, weights.o, chunk.memory.context, rows, work_.out);
    add_rms_norm(stream.raw(), dtype_, chunk.memory.x, work_.out, weights.ffn_norm, shape_.rms_eps,
                 chunk.memory.normed, rows, shape_.hidden);
    chunk.normed_with = weights.ffn_norm;
  }
  return op.close();
}

void CudaLayers::attend(const Stream& stream, CudaChunk& chunk, int layer) {
  const CudaLayer& weights = weights_.layers[static_cast<std::size_t>(layer)];
  const KvPages& kv = kv_.layers[static_cast<std::size_t>(layer)];
  RopeArgs rope;
  rope.kv = kv;
  rope.map = chunk.inputs.map;
  rope.num_heads = shape_.num_heads;
  rope.num_rows = chunk.num_tokens();
  rope.norm = shape_.qk_norm;
  rope.q_norm = weights.q_norm;
  rope.k_norm = weights.k_norm;
  rope.eps = shape_.rms_eps;
  rope.angles = weights_.angles;
  rope.qkv = chunk.memory.qkv;
  rope_and_store(stream.raw(), dtype_, rope);

  AttentionArgs args;
  args.kv = kv;
  args.map = chunk.inputs.map;
  args.num_heads = shape_.num_heads;
  args.num_rows = chunk.num_tokens();
  args.qkv = chunk.memory.qkv;
  args.qkv_stride = shape_.q_width() + 2 * shape_.kv_width();
  args.out = chunk.memory.context;
  args.tiles = chunk.inputs.tiles;
  args.num_wide = chunk.inputs.num_wide;
  args.num_narrow = chunk.inputs.num_narrow;
  args.merges = chunk.inputs.merges;
  args.num_merges = chunk.inputs.num_merges;
  args.workspace = work_.attention;
  cuda::attention(stream.raw(), dtype_, args);
}

void CudaLayers::mlp_up(const Stream& stream, const MlpKinds& kinds, const CudaMlp& mlp,
                        const void* in, std::int64_t rows, void* inner) {
  const std::int64_t count = rows * kinds.width;
  if (shape_.activation == Activation::swiglu) {
    gemm_.run(stream, kinds.up, mlp.up, in, rows, inner);
    gemm_.run(stream, kinds.gate, mlp.gate, in, rows, work_.inner_float);
    swiglu(stream.raw(), dtype_, work_.inner_float, inner, inner, count);
  } else if (fuses_gelu_) {
    gemm_.run(stream, kinds.up, mlp.up, in, rows, inner);
  } else {
    gemm_.run(stream, kinds.up_float, mlp.up, in, rows, work_.inner_float);
    gelu(stream.raw(), dtype_, work_.inner_float, inner, count);
  }
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
    const int count = std::min(work_.mlp_rows, rows - first);
    mlp_up(stream, dense_, weights.dense, at(chunk.memory.normed, first), count, work_.inner);
    gemm_.run(stream, dense_.down, weights.dense.down, work_.inner, count, at(work_.out, first));
  }
  const float* const next = norm_after(layer);
  add_rms_norm(stream.raw(), dtype_, chunk.memory.x, work_.out, next, shape_.rms_eps,
               chunk.memory.normed, rows, shape_.hidden);
  chunk.normed_with = next;
  return op.close();
}

}  // namespace atl::compute::cuda
