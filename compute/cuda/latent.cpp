// The CUDA backend's latent attention, by the rule of the CPU's: prompt tokens attend to keys and
// values that are expanded from the latents, some heads at a time, and then forgotten; generated
// ones to the latents themselves, their queries taken to them. A token's bits depend on which of
// the two it is, and on nothing else.

#include <algorithm>
#include <vector>

#include "compute/cuda/error.hpp"
#include "compute/cuda/operations.hpp"

namespace atl::compute::cuda {

void CudaLayers::add_latents(const CudaLayer& first) {
  using Output = CudaGemm::Output;
  const LatentAttention& latent = shape_.latent;
  latent_ = LatentHeads(options_);
  const auto rows = static_cast<int>(options_.most_attention_rows());
  const int queries = latent.queries > 0 ? latent.queries : shape_.q_width();
  qkv_.push_back(gemm_.add(static_cast<int>(projected_width(options_)), shape_.hidden,
                           shape_.qkv_bias ? Output::float32 : Output::activation, rows,
                           sample(first.qkv), queries + latent.width()));
  if (latent.queries > 0) {
    q_up_ = gemm_.add(own_.q_width(), latent.queries, Output::activation, rows, sample(first.q_up),
                      shape_.q_width());
  }
  // Products of some heads begin anywhere in the weights: the second ones stand for all.
  const auto add_expanding = [&](const void* weight, int width) {
    const int n = latent_.at_once * width;
    const bool several = latent_.at_once < own_.num_heads;
    return gemm_.add(n, latent.keys, Output::activation,
                     std::min(latent_.positions, latents_at_once),
                     several ? row_at(weight, n, latent.keys) : weight, shape_.num_heads * width);
  };
  if (latent_.positions > 0) {
    k_up_ = add_expanding(first.k_up, shape_.head_dim - latent.rope);
    v_up_ = add_expanding(first.v_up, shape_.values_dim());
  }
  const std::vector<std::int32_t> zeros(static_cast<std::size_t>(rows), 0);
  check(cudaMemcpy(work_.latent.zeros, zeros.data(), zeros.size() * sizeof(std::int32_t),
                   cudaMemcpyHostToDevice),
        "cudaMemcpy");
  check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");  // as in CudaWeights::finish()
}

CudaLayers::LatentRows CudaLayers::latent_rows(const CudaChunk& chunk) const {
  const std::int64_t q = own_.q_width();
  const std::int64_t kept = shape_.latent.width();
  if (shape_.latent.queries == 0) {
    return {chunk.memory.qkv, q + kept, row_at(chunk.memory.qkv, 1, q), q + kept};
  }
  const std::int64_t rows = options_.most_attention_rows();
  return {chunk.memory.qkv, q, row_at(chunk.memory.qkv, rows, q), kept};
}

void CudaLayers::project_latents(const Stream& stream, CudaChunk& chunk, const CudaLayer& weights,
                                 const void* normed) {
  const LatentAttention& latent = shape_.latent;
  const int rows = chunk.attention_rows();
  const bool q_latent = latent.queries > 0;
  run_biased(stream, qkv_.front(), qkv_.front(), weights.qkv, normed, rows, weights.qkv_bias,
             static_cast<int>(projected_width(options_)), work_.qkv_sums,
             q_latent ? work_.latent.projected : chunk.memory.qkv);
  if (!q_latent) return;
  const LatentRows to = latent_rows(chunk);
  norm_latents(stream.raw(), dtype_,
               {work_.latent.projected, weights.q_latent_norm, latent.eps, work_.latent.queries,
                to.kept, rows, latent.queries, latent.width()});
  gemm_.run(stream, q_up_, plain(stream, weights.q_up), work_.latent.queries, rows, to.q);
}

void CudaLayers::attend_latents(const Stream& stream, CudaChunk& chunk, int layer) {
  const CudaLayer& weights = weights_.layers[static_cast<std::size_t>(layer)];
  const LatentRows rows = latent_rows(chunk);
  const CudaAngles& angles = angles_of(layer);
  LatentRopeArgs rope;
  rope.kv = kv_.layers[static_cast<std::size_t>(layer)];
  rope.map = chunk.inputs.map;
  rope.num_heads = own_.num_heads;
  rope.num_rows = chunk.attention_rows();
  rope.head_dim = shape_.head_dim;
  rope.q = rows.q;
  rope.q_stride = rows.q_stride;
  rope.latents = rows.kept;
  rope.latent_stride = rows.kept_stride;
  rope.norm = weights.kv_latent_norm;
  rope.eps = shape_.latent.eps;
  rope.angles = angles.values;
  rope.dims = angles.dims;
  rope.temperature = shape_.temperature;
  latent_rope(stream.raw(), dtype_, rope);
  for (const AttendWork& work : chunk.plan().expanded) {
    attend_expanded(stream, chunk, layer, work);
  }
  for (const AttendWork& work : chunk.plan().absorbed) {
    attend_absorbed(stream, chunk, layer, work);
  }
}

void CudaLayers::expand(const Stream& stream, int layer, const std::int32_t* pages, int context,
                        int first_head) {
  const CudaLayer& weights = weights_.layers[static_cast<std::size_t>(layer)];
  const KvPages& latents = kv_.layers[static_cast<std::size_t>(layer)];
  const int keys = shape_.latent.keys;
  const LatentWorkspace& work = work_.latent;
  const auto rows_of_heads = [&](const void* weight, int width) {
    return row_at(weight, std::int64_t{first_head} * width, keys);
  };
  for (int first = 0; first < context; first += latents_at_once) {
    const int count = std::min(latents_at_once, context - first);
    gather_latents(stream.raw(), dtype_, latents, pages, first, count, work.latents);
    gemm_.run(stream, k_up_, rows_of_heads(weights.k_up, shape_.head_dim - shape_.latent.rope),
              work.latents, count, work.k_rows);
    gemm_.run(stream, v_up_, rows_of_heads(weights.v_up, shape_.values_dim()), work.latents, count,
              work.v_rows);
    store_expanded(stream.raw(), dtype_, latents, pages, first, count, work.k_rows, work.v_rows,
                   expanded_pages());
  }
}

KvPages CudaLayers::expanded_pages() const {
  return {work_.latent.keys, work_.latent.values, latent_.at_once,
          shape_.head_dim,   latent_.positions,   shape_.values_dim()};
}

void CudaLayers::attend_expanded(const Stream& stream, CudaChunk& chunk, int layer,
                                 const AttendWork& work) {
  const LatentRows rows = latent_rows(chunk);
  const std::int32_t* pages =
      chunk.inputs.map.pages + std::int64_t{work.segment} * chunk.inputs.map.max_pages;
  AttentionArgs args;
  args.kv = expanded_pages();
  args.map = {chunk.inputs.map.position + work.first_row, work_.latent.zeros, work_.latent.zeros,
              1};
  args.num_heads = latent_.at_once;
  args.num_rows = work.num_rows;
  args.qkv_stride = rows.q_stride;
  args.out_stride = own_.heads_width();
  args.scale = shape_.logit_scale();
  for (int head = 0; head < own_.num_heads; head += latent_.at_once) {
    expand(stream, layer, pages, work.context, head);
    args.qkv = row_at(row_at(rows.q, work.first_row, rows.q_stride), head, shape_.head_dim);
    args.out = row_at(row_at(attended(chunk), work.first_row, own_.heads_width()), head,
                      shape_.values_dim());
    launch_attention(stream, chunk, work, args);
  }
}

void CudaLayers::attend_absorbed(const Stream& stream, CudaChunk& chunk, int layer,
                                 const AttendWork& work) {
  const CudaLayer& weights = weights_.layers[static_cast<std::size_t>(layer)];
  const LatentAttention& latent = shape_.latent;
  const LatentRows rows = latent_rows(chunk);
  const std::int32_t* listed = chunk.inputs.generated + work.first_row;
  absorb_queries(stream.raw(), dtype_,
                 {rows.q, rows.q_stride, listed, weights.k_up, work_.latent.absorbed, work.num_rows,
                  own_.num_heads, shape_.head_dim, latent.rope, latent.keys});
  AttentionArgs args;
  args.kv = kv_.layers[static_cast<std::size_t>(layer)];
  args.map = chunk.inputs.generated_map;
  args.map.position += work.first_row;
  args.map.sequence += work.first_row;
  args.num_heads = own_.num_heads;
  args.groups = {own_.num_heads, 0, own_.num_heads};
  args.num_rows = work.num_rows;
  args.qkv = work_.latent.absorbed;
  args.qkv_stride = std::int64_t{own_.num_heads} * latent.width();
  args.out = work_.latent.outputs;
  args.scale = shape_.logit_scale();
  launch_attention(stream, chunk, work, args);
  cuda::project_latents(
      stream.raw(), dtype_,
      {work_.latent.outputs, listed, weights.v_up, attended(chunk), own_.heads_width(),
       work.num_rows, own_.num_heads, shape_.values_dim(), latent.keys});
}

}  // namespace atl::compute::cuda
