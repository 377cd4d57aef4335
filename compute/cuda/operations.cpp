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
      by_wgmma_(device.why_no_wgmma.empty() && ChunkPlan::takes_wgmma(options)),
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
  for (int layer = 0; layer < shape_.num_layers; ++layer) {
    heads_of_layer_.push_back(own_heads(shape_, options.part.attention, layer));
  }
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
  kinds.out = shape_.hidden / members;
  const int rows = work_.mlp_rows;
  const auto add_up = [&](Output output, const void* weight) {
    return gemm_.add(kinds.width, shape_.hidden, output, rows, sample(weight), width);
  };
  if (shape_.activation != Activation::gelu_tanh) {
    kinds.up = add_up(Output::activation, mlp.up);
    kinds.gate = add_up(Output::float32, mlp.gate);
  } else {
    kinds.up = add_up(Output::gelu, mlp.up);
    kinds.up_float = add_up(Output::float32, mlp.up);
  }
  kinds.down =
      gemm_.add(kinds.out, width, Output::activation, rows, sample(mlp.down), shape_.hidden);
  if (mlp.down_bias != nullptr) {
    kinds.down_float =
        gemm_.add(kinds.out, width, Output::float32, rows, sample(mlp.down), shape_.hidden);
  }
  return kinds;
}

void CudaLayers::prepare() {
  finish_weights();
  fill_samples();
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
  if (shape_.activation == Activation::gelu_tanh) choose_gelu(stream);
}

/// What decides is the same on all ranks, whichever of these MLPs they have.
void CudaLayers::choose_gelu(const Stream& stream) {
  const auto kinds = {&dense_, &expert_, &shared_};
  const auto is_there = [](const MlpKinds* mlp) { return mlp->width > 0; };
  if (std::none_of(kinds.begin(), kinds.end(), is_there)) return;
  const bool accurate = gemm_.gelu_is_accurate(shape_.hidden, stream);
  fuses_gelu_ = accurate && std::all_of(kinds.begin(), kinds.end(), [&](const MlpKinds* mlp) {
                  return !is_there(mlp) || gemm_.keeps_bits(mlp->up);
                });
  for (const MlpKinds* mlp : kinds) {
    if (!is_there(mlp)) continue;
    gemm_.leave_out(fuses_gelu_ ? mlp->up_float : mlp->up);
    if (accurate && !fuses_gelu_) gemm_.tell_dependent(mlp->up_float);  // others fuse it
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
                chunk.num_tokens(), shape_.hidden, shape_.embedding_scale);
  }
  chunk.normed_with = nullptr;
  return op.close();
}

void CudaLayers::mlp_up(const Stream& stream, const MlpKinds& kinds, const CudaMlp& mlp,
                        const void* in, std::int64_t rows, void* inner) {
  const std::int64_t count = rows * kinds.width;
  const bool clamped = shape_.activation == Activation::swiglu_clamped;
  if (clamped || mlp.up_bias != nullptr || mlp.gate_bias != nullptr) {
    run_biased(stream, kinds.up, kinds.gate, mlp.up, in, rows, mlp.up_bias, kinds.width,
               work_.inner_float, inner);
    gemm_.run(stream, kinds.gate, plain(stream, mlp.gate), in, rows, work_.inner_float);
    gated(stream.raw(), dtype_,
          {work_.inner_float, mlp.gate_bias, inner, inner, static_cast<int>(rows), kinds.width,
           clamped, shape_.clamp_limit, shape_.clamp_alpha});
  } else if (shape_.activation == Activation::swiglu) {
    gemm_.run(stream, kinds.up, plain(stream, mlp.up), in, rows, inner);
    gemm_.run(stream, kinds.gate, plain(stream, mlp.gate), in, rows, work_.inner_float);
    swiglu(stream.raw(), dtype_, work_.inner_float, inner, inner, count);
  } else if (fuses_gelu_) {
    gemm_.run(stream, kinds.up, plain(stream, mlp.up), in, rows, inner);
  } else {
    gemm_.run(stream, kinds.up_float, plain(stream, mlp.up), in, rows, work_.inner_float);
    gelu(stream.raw(), dtype_, work_.inner_float, inner, count);
  }
}

const void* CudaLayers::plain(const Stream& stream, const void* matrix) const {
  const auto coded = weights_.codes.find(matrix);
  if (coded == weights_.codes.end()) return matrix;
  unpack(stream.raw(), dtype_, coded->second, work_.unpacked);
  return work_.unpacked;
}

const void* CudaLayers::sample(const void* matrix) const {
  return weights_.codes.contains(matrix) ? work_.unpacked : matrix;
}

/// All products share the place for what is unpacked: the matrix that fills most of it stands for
/// all.
void CudaLayers::fill_samples() {
  const CodedRows* largest = nullptr;
  for (const auto& [place, coded] : weights_.codes) {
    if (largest == nullptr || coded.rows * coded.cols > largest->rows * largest->cols) {
      largest = &coded;
    }
  }
  if (largest == nullptr) return;
  unpack(queue_.stream(StreamId::compute).raw(), dtype_, *largest, work_.unpacked);
}

void CudaLayers::run_biased(const Stream& stream, CudaGemm::Kind plain, CudaGemm::Kind summed,
                            const void* weight, const void* in, std::int64_t rows,
                            const float* bias, int width, float* sums, void* out) {
  const void* elements = this->plain(stream, weight);
  if (bias == nullptr) return gemm_.run(stream, plain, elements, in, rows, out);
  gemm_.run(stream, summed, elements, in, rows, sums);
  add_bias(stream.raw(), dtype_, sums, bias, out, static_cast<int>(rows), width);
}

void CudaLayers::mlp_down(const Stream& stream, const MlpKinds& kinds, const CudaMlp& mlp,
                          const void* inner, std::int64_t rows, void* out) {
  run_biased(stream, kinds.down, kinds.down_float, mlp.down, inner, rows, mlp.down_bias, kinds.out,
             work_.down_sums, out);
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
    mlp_down(stream, kinds, mlp, work_.inner, count, at(work_.out, first));
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
