#include "compute/cuda/operations.hpp"

#include <algorithm>
#include <cstring>

#include "compute/cuda/error.hpp"
#include "compute/cuda/wgmma.hpp"
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

CudaLayers::CudaLayers(const BackendOptions& options, const CudaDevice& device)
    : options_(options),
      shape_(options_.shape),
      own_(own_heads(shape_, options.part.attention)),
      sums_per_member_(options.part.attention.sums_per_member(shape_)),
      dtype_(options.dtype),
      multiprocessors_(count_multiprocessors()),
      by_wgmma_(device.why_no_wgmma.empty() && wgmma_attends(shape_, dtype_)),
      weights_(allocate<CudaWeights>(options, "the weights", weight_memory_)),
      kv_(allocate<KvCache>(options, "the KV cache", kv_memory_)),
      work_(allocate<Workspace>(options, "the workspace", workspace_memory_)),
      gemm_(options.dtype, work_.gemm),
      logits_free_(CudaEvent::Timing::off),
      kv_moved_(CudaEvent::Timing::off),
      bounce_(std::size_t{4} << 20),
      page_uploads_(static_cast<std::size_t>(most_pages(options)) * sizeof(std::int32_t)),
      change_uploads_(static_cast<std::size_t>(options.shape.vocab) * sizeof(LogitChange)) {
  runs_.reserve(64);
}

Backend::Memory CudaLayers::memory() const {
  return {static_cast<std::int64_t>(weight_memory_.bytes()),
          static_cast<std::int64_t>(kv_memory_.bytes()),
          static_cast<std::int64_t>(workspace_memory_.bytes())};
}

CudaLayers::MlpKinds CudaLayers::add_mlp(const CudaMlp& mlp, int width, int members) {
  using Output = CudaGemm::Output;
  MlpKinds kinds;
  kinds.width = width / members;
  const int rows = work_.mlp_rows;
  const auto add_up = [&](Output output, const void* weight) {
    return gemm_.add(kinds.width, shape_.hidden, output, rows, weight, width);
  };
  if (shape_.activation == Activation::swiglu) {
    kinds.up = add_up(Output::activation, mlp.up);
    kinds.gate = add_up(Output::float32, mlp.gate);
  } else {
    kinds.up = add_up(Output::gelu, mlp.up);
    kinds.up_float = add_up(Output::float32, mlp.up);
  }
  kinds.down =
      gemm_.add(shape_.hidden / members, width, Output::activation, rows, mlp.down, shape_.hidden);
  return kinds;
}

void CudaLayers::prepare() {
  finish_weights();
  using Output = CudaGemm::Output;
  const int tokens = options_.max_chunk_tokens;
  add_attention();
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
      expert_ = add_mlp(weights.experts.front(), shape_.moe_intermediate,
                        options_.part.expert_share.members);
    }
    if (shape_.has_shared_expert() && shared_.width == 0) {
      shared_ = add_mlp(weights.shared, shape_.shared_intermediate);
    }
  }
  const Stream& stream = queue_.stream(StreamId::compute);
  gemm_.prepare(stream);
  if (shape_.activation == Activation::gelu_tanh) {
    fuses_gelu_ = true;
    for (const MlpKinds* kinds : {&dense_, &expert_, &shared_}) {
      if (kinds->width == 0) continue;
      fuses_gelu_ = fuses_gelu_ && gemm_.gelu_is_accurate(kinds->up, kinds->up_float, stream);
    }
    for (const MlpKinds* kinds : {&dense_, &expert_, &shared_}) {
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
  // Those of shared attention's rows lie elsewhere: AttentionPart::norm puts them there.
  if (options_.part.attention.shared()) return nullptr;
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
  if (chunk.attention_rows() == 0) {
    op.begin(StreamId::compute);
    return op.close();
  }
  chunk.upload(multiprocessors_, by_wgmma_, op.begin(StreamId::copy));
  const Stream& stream = op.begin(StreamId::compute);
  if (options_.part.first_layer == 0) {
    cuda::embed(stream.raw(), dtype_, weights_.embedding, chunk.inputs.tokens, chunk.memory.x,
                chunk.num_tokens(), shape_.hidden);
  }
  chunk.normed_with = nullptr;
  return op.close();
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

void CudaLayers::run_mlp(const Stream& stream, const CudaChunk& chunk, const MlpKinds& kinds,
                         const CudaMlp& mlp) {
  const int rows = chunk.num_tokens();
  const auto at = [this](void* base, int row) {
    return static_cast<std::byte*>(base) + static_cast<std::size_t>(row) * row_bytes();
  };
  for (int first = 0; first < rows; first += work_.mlp_rows) {
    const int count = std::min(work_.mlp_rows, rows - first);
    mlp_up(stream, kinds, mlp, at(chunk.memory.normed, first), count, work_.inner);
    gemm_.run(stream, kinds.down, mlp.down, work_.inner, count, at(work_.out, first));
  }
}

/// The normed rows stay those of x before: what packs them reads them on another stream.
Event CudaLayers::shared_expert(CudaChunk& chunk, int layer) {
  Op op(queue_, "shared expert", layer, &chunk.order);
  const Stream& stream = op.begin(StreamId::compute);
  const int rows = chunk.num_tokens();
  if (rows == 0) return op.close();
  const CudaLayer& weights = weights_.layers[static_cast<std::size_t>(layer)];
  norm(stream, chunk, weights.ffn_norm);
  run_mlp(stream, chunk, shared_, weights.shared);
  if (shape_.shared_gate) {
    weigh_rows(stream.raw(), dtype_, work_.out, chunk.memory.normed, weights.shared_router, rows,
               shape_.hidden);
  }
  add_rms_norm(stream.raw(), dtype_, chunk.memory.x, work_.out, nullptr, shape_.rms_eps, nullptr,
               rows, shape_.hidden);
  return op.close();
}

Event CudaLayers::mlp(CudaChunk& chunk, int layer) {
  Op op(queue_, "mlp", layer, &chunk.order);
  const Stream& stream = op.begin(StreamId::compute);
  const int rows = chunk.num_tokens();
  if (rows == 0) return op.close();
  const CudaLayer& weights = weights_.layers[static_cast<std::size_t>(layer)];
  norm(stream, chunk, weights.ffn_norm);
  run_mlp(stream, chunk, dense_, weights.dense);
  const float* const next = norm_after(layer);
  add_rms_norm(stream.raw(), dtype_, chunk.memory.x, work_.out, next, shape_.rms_eps,
               chunk.memory.normed, rows, shape_.hidden);
  chunk.normed_with = next;
  return op.close();
}

}  // namespace atl::compute::cuda
