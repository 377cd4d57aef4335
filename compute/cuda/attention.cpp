// The CUDA backend's attention, in its parts.

#include <cmath>

#include "compute/cuda/operations.hpp"

namespace atl::compute::cuda {

namespace {
std::byte* at(const void* base, std::int64_t bytes) {
  return static_cast<std::byte*>(const_cast<void*>(base)) + bytes;
}
}  // namespace

void CudaLayers::add_attention() {
  const CudaLayer& first = weights_.layers[static_cast<std::size_t>(options_.part.first_layer)];
  if (shape_.latent.used()) {
    add_latents(first);
  } else {
    add_projections();
  }
  const AttentionShare& share = options_.part.attention;
  const OutputCut output = share.shared() ? share.output : OutputCut::rows;
  const auto rows = static_cast<int>(options_.most_attention_rows());
  const int hidden = shape_.hidden;
  const auto add_both = [&](int n, int k, int most, const void* weight, CudaGemm::Kind& plain,
                            CudaGemm::Kind& summed) {
    plain = gemm_.add(n, k, CudaGemm::Output::activation, most, weight, hidden);
    if (!shape_.output_bias) return;
    summed = gemm_.add(n, k, CudaGemm::Output::float32, most, weight, hidden);
  };
  if (output == OutputCut::columns || output == OutputCut::either) {
    add_both(hidden / share.members, shape_.heads_width(), rows,
             own_output_columns(sample(first.o)), o_columns_, o_columns_sums_);
  }
  if (output == OutputCut::sum) {
    o_ = o_sums_ =
        gemm_.add(hidden, own_.heads_width(), CudaGemm::Output::float32, rows, sample(first.o));
  } else if (output == OutputCut::sum_bf16) {
    add_both(hidden, own_.heads_width(), rows, sample(first.o), o_, o_sums_);
  } else if (output != OutputCut::columns) {
    add_both(hidden, shape_.heads_width(), options_.max_chunk_tokens, sample(first.o), o_, o_sums_);
  }
}

void CudaLayers::add_projections() {
  const CudaGemm::Output output =
      shape_.qkv_bias ? CudaGemm::Output::float32 : CudaGemm::Output::activation;
  for (const int layer : layers_of_kinds(options_)) {
    qkv_.push_back(-1);
    if (layer < 0) continue;
    const auto l = static_cast<std::size_t>(layer);
    const int kv_heads = shape_.attention(layer).num_kv_heads;
    const int whole = shape_.q_width() + kv_heads * (shape_.head_dim + shape_.values_dim());
    qkv_.back() = gemm_.add(heads_of_layer_[l].qkv_width(), shape_.hidden, output,
                            static_cast<int>(options_.most_attention_rows()),
                            sample(weights_.layers[l].qkv), whole);
  }
}

const void* CudaLayers::own_output_columns(const void* o) const {
  const AttentionShare& share = options_.part.attention;
  if (share.output != OutputCut::either) return o;
  return row_at(o, shape_.hidden / share.members * share.place, shape_.heads_width());
}

const float* CudaLayers::output_bias(const CudaLayer& weights, std::int64_t first) const {
  const AttentionShare& share = options_.part.attention;
  // Of summands one has it.
  const bool another = share.shared() && is_sum(share.output) && share.place > 0;
  return weights.output_bias == nullptr || another ? nullptr : weights.output_bias + first;
}

Event CudaLayers::attention(CudaChunk& chunk, int layer, AttentionPart part) {
  Op op(queue_, "attention", layer, &chunk.order);
  const Stream& stream = op.begin(StreamId::compute);
  if (chunk.attention_rows() == 0) return op.close();
  const AttentionShare& share = options_.part.attention;
  const CudaLayer& weights = weights_.layers[static_cast<std::size_t>(layer)];
  const bool all = part == AttentionPart::all;
  if (part == AttentionPart::norm && share.shared()) {
    const auto first = chunk.first_own_row * static_cast<std::int64_t>(row_bytes());
    rms_norm(stream.raw(), dtype_, chunk.memory.x, nullptr, weights.attention_norm, shape_.rms_eps,
             at(chunk.normed, first), chunk.num_tokens(), shape_.hidden);
  }
  if (all || part == AttentionPart::project) project(stream, chunk, layer);
  if (all || part == AttentionPart::attend) attend(stream, chunk, layer);
  if (all || part == AttentionPart::output) output(stream, chunk, layer);
  if (part == AttentionPart::add && share.shared() && chunk.output != OutputCut::rows) {
    join_output(stream, chunk);
    add_to_x(stream, chunk, layer);
  }
  return op.close();
}

void CudaLayers::project(const Stream& stream, CudaChunk& chunk, int layer) {
  const AttentionShare& share = options_.part.attention;
  const CudaLayer& weights = weights_.layers[static_cast<std::size_t>(layer)];
  const void* normed = chunk.normed;
  if (!share.shared()) {
    norm(stream, chunk, weights.attention_norm);
    normed = chunk.memory.normed;
  }
  if (shape_.latent.used()) return project_latents(stream, chunk, weights, normed);
  const CudaGemm::Kind qkv = qkv_[kind_of(layer)];
  run_biased(stream, qkv, qkv, weights.qkv, normed, chunk.attention_rows(), weights.qkv_bias,
             heads_of_layer_[static_cast<std::size_t>(layer)].qkv_width(), work_.qkv_sums,
             chunk.memory.qkv);
  if (!share.shared() || shape_.qk_norm != QkNorm::whole_row) return;
  head_squares(stream.raw(), dtype_, rope_args(chunk, layer),
               chunk.head_sums + share.place * chunk.all_rows * sums_per_member_);
}

HeadGroups CudaLayers::head_groups(int layer) const {
  const OwnHeads& own = heads_of_layer_[static_cast<std::size_t>(layer)];
  HeadGroups groups;
  groups.group = shape_.num_heads / shape_.attention(layer).num_kv_heads;
  groups.before = own.first_head() % groups.group;
  groups.most = own.most_in_group;
  return groups;
}

RopeArgs CudaLayers::rope_args(const CudaChunk& chunk, int layer) const {
  const CudaLayer& weights = weights_.layers[static_cast<std::size_t>(layer)];
  RopeArgs rope;
  rope.kv = kv_.layers[static_cast<std::size_t>(layer)];
  rope.map = chunk.inputs.map;
  rope.num_heads = own_.num_heads;
  rope.groups = head_groups(layer);
  rope.num_rows = chunk.attention_rows();
  rope.norm = shape_.qk_norm;
  if (options_.part.attention.shared()) {
    rope.squares = {chunk.head_sums, options_.part.attention.members, chunk.all_rows,
                    sums_per_member_, shape_.num_kv_heads};
  }
  rope.q_norm = weights.q_norm;
  rope.k_norm = weights.k_norm;
  rope.eps = shape_.rms_eps;
  const CudaAngles& angles = angles_of(layer);
  rope.angles = angles.values;
  rope.dims = angles.dims;
  rope.norm_after = shape_.norm_after_rope;
  // The attention kernels multiply by 1 / sqrt(head_dim).
  if (shape_.attention_scale > 0) {
    rope.q_factor = shape_.attention_scale * std::sqrt(static_cast<float>(shape_.head_dim));
  }
  rope.value_factor = shape_.value_scale;
  rope.qkv = chunk.memory.qkv;
  return rope;
}

void CudaLayers::attend(const Stream& stream, CudaChunk& chunk, int layer) {
  if (shape_.latent.used()) return attend_latents(stream, chunk, layer);
  rope_and_store(stream.raw(), dtype_, rope_args(chunk, layer));
  AttentionArgs args;
  args.kv = kv_.layers[static_cast<std::size_t>(layer)];
  args.map = chunk.inputs.map;
  args.num_heads = own_.num_heads;
  args.groups = head_groups(layer);
  args.num_rows = chunk.attention_rows();
  args.qkv = chunk.memory.qkv;
  args.qkv_stride = heads_of_layer_[static_cast<std::size_t>(layer)].qkv_width();
  args.out = attended(chunk);
  args.window = shape_.attention(layer).window;
  args.sinks = weights_.layers[static_cast<std::size_t>(layer)].sinks;
  launch_attention(stream, chunk, chunk.plan().of_kind[kind_of(layer)], args);
}

void CudaLayers::launch_attention(const Stream& stream, const CudaChunk& chunk,
                                  const AttendWork& work, AttentionArgs args) const {
  args.tiles = chunk.inputs.tiles + work.first_tile;
  args.num_wide = work.num_wide;
  args.num_narrow = work.num_narrow;
  args.merges = chunk.inputs.merges + work.first_merge;
  args.num_merges = work.num_merges;
  args.workspace = work_.attention;
  args.wgmma = work.by_groups;
  args.totals = work_.attention_totals;
  cuda::attention(stream.raw(), dtype_, args);
}

void CudaLayers::output(const Stream& stream, CudaChunk& chunk, int layer) {
  const AttentionShare& share = options_.part.attention;
  const CudaLayer& weights = weights_.layers[static_cast<std::size_t>(layer)];
  if (share.shared() && is_sum(chunk.output)) {
    return add_summands(stream, chunk, weights);
  }
  const bool columns = share.shared() && chunk.output == OutputCut::columns;
  const void* heads = chunk.memory.context;
  if (share.shared()) {
    const std::int64_t own_row = own_.heads_width() * static_cast<std::int64_t>(size_of(dtype_));
    MemberRows rows;
    rows.received = chunk.heads_recv;
    rows.own = columns ? chunk.heads_send : at(chunk.heads_send, chunk.first_own_row * own_row);
    rows.members = share.members;
    rows.place = share.place;
    rows.num_rows = columns ? static_cast<int>(chunk.all_rows) : chunk.num_tokens();
    rows.width = own_.heads_width();
    join_columns(stream.raw(), dtype_, rows, work_.heads);
    heads = work_.heads;
  }
  if (columns) {
    const int width = shape_.hidden / share.members;
    const std::int64_t first =
        share.output == OutputCut::either ? std::int64_t{share.place} * width : 0;
    run_biased(stream, o_columns_, o_columns_sums_, own_output_columns(plain(stream, weights.o)),
               heads, chunk.all_rows, output_bias(weights, first), width, work_.out_sums,
               chunk.output_send);
    return;
  }
  run_biased(stream, o_, o_sums_, weights.o, heads, chunk.num_tokens(), output_bias(weights, 0),
             shape_.hidden, work_.out_sums, work_.out);
  add_to_x(stream, chunk, layer);
}

void CudaLayers::add_summands(const Stream& stream, CudaChunk& chunk, const CudaLayer& weights) {
  const float* bias = output_bias(weights, 0);
  if (chunk.output == OutputCut::sum_bf16) {
    return run_biased(stream, o_, o_sums_, weights.o, chunk.heads_send, chunk.all_rows, bias,
                      shape_.hidden, work_.out_sums, chunk.output_send);
  }
  gemm_.run(stream, o_, plain(stream, weights.o), chunk.heads_send, chunk.all_rows,
            chunk.output_send);
  if (bias == nullptr) return;
  auto* const sums = static_cast<float*>(chunk.output_send);
  add_bias(stream.raw(), DType::float32, sums, bias, sums, static_cast<int>(chunk.all_rows),
           shape_.hidden);
}

void CudaLayers::join_output(const Stream& stream, CudaChunk& chunk) {
  const AttentionShare& share = options_.part.attention;
  const bool sum = is_sum(chunk.output);
  const DType type = chunk.output == OutputCut::sum ? DType::float32 : dtype_;
  MemberRows rows;
  rows.width = sum ? shape_.hidden : shape_.hidden / share.members;
  rows.received = chunk.output_recv;
  rows.own = at(chunk.output_send,
                chunk.first_own_row * rows.width * static_cast<std::int64_t>(size_of(type)));
  rows.members = share.members;
  rows.place = share.place;
  rows.num_rows = chunk.num_tokens();
  if (sum) {
    sum_members(stream.raw(), dtype_, type, rows, work_.out);
  } else {
    join_columns(stream.raw(), dtype_, rows, work_.out);
  }
}

void CudaLayers::add_to_x(const Stream& stream, CudaChunk& chunk, int layer) {
  const CudaLayer& weights = weights_.layers[static_cast<std::size_t>(layer)];
  add_rms_norm(stream.raw(), dtype_, chunk.memory.x, work_.out, weights.ffn_norm, shape_.rms_eps,
               chunk.memory.normed, chunk.num_tokens(), shape_.hidden);
  chunk.normed_with = weights.ffn_norm;
}

}  // namespace atl::compute::cuda
