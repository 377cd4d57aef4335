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
  using Output = CudaGemm::Output;
  const AttentionShare& share = options_.part.attention;
  const CudaLayer& first = weights_.layers[static_cast<std::size_t>(options_.part.first_layer)];
  const auto rows = static_cast<int>(options_.most_attention_rows());
  const int whole_qkv = shape_.q_width() + 2 * shape_.kv_width();
  const Output qkv = shape_.qkv_bias ? Output::float32 : Output::activation;
  qkv_ = gemm_.add(own_.qkv_width(), shape_.hidden, qkv, rows, first.qkv, whole_qkv);
  const int hidden = shape_.hidden;
  const OutputCut output = share.shared() ? share.output : OutputCut::rows;
  if (output == OutputCut::columns || output == OutputCut::either) {
    o_columns_ = gemm_.add(hidden / share.members, shape_.q_width(), Output::activation, rows,
                           own_output_columns(first), hidden);
  }
  if (is_sum(output)) {
    o_ = gemm_.add(hidden, own_.q_width(),
                   output == OutputCut::sum ? Output::float32 : Output::activation, rows, first.o);
  } else if (output != OutputCut::columns) {
    o_ =
        gemm_.add(hidden, shape_.q_width(), Output::activation, options_.max_chunk_tokens, first.o);
  }
}

const void* CudaLayers::own_output_columns(const CudaLayer& weights) const {
  const AttentionShare& share = options_.part.attention;
  if (share.output != OutputCut::either) return weights.o;
  return row_at(weights.o, shape_.hidden / share.members * share.place, shape_.q_width());
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
  const int rows = chunk.attention_rows();
  if (weights.qkv_bias == nullptr) {
    gemm_.run(stream, qkv_, weights.qkv, normed, rows, chunk.memory.qkv);
  } else {
    gemm_.run(stream, qkv_, weights.qkv, normed, rows, work_.qkv_sums);
    add_bias(stream.raw(), dtype_, work_.qkv_sums, weights.qkv_bias, chunk.memory.qkv, rows,
             own_.qkv_width());
  }
  if (!share.shared() || shape_.qk_norm != QkNorm::whole_row) return;
  head_squares(stream.raw(), dtype_, rope_args(chunk, layer),
               chunk.head_sums + share.place * chunk.all_rows * sums_per_member_);
}

HeadGroups CudaLayers::head_groups() const {
  HeadGroups groups;
  groups.group = shape_.num_heads / shape_.num_kv_heads;
  groups.before = own_.first_head() % groups.group;
  groups.most = own_.most_in_group;
  return groups;
}

RopeArgs CudaLayers::rope_args(const CudaChunk& chunk, int layer) const {
  const CudaLayer& weights = weights_.layers[static_cast<std::size_t>(layer)];
  RopeArgs rope;
  rope.kv = kv_.layers[static_cast<std::size_t>(layer)];
  rope.map = chunk.inputs.map;
  rope.num_heads = own_.num_heads;
  rope.groups = head_groups();
  rope.num_rows = chunk.attention_rows();
  rope.norm = shape_.qk_norm;
  if (options_.part.attention.shared()) {
    rope.squares = {chunk.head_sums, options_.part.attention.members, chunk.all_rows,
                    sums_per_member_, shape_.num_kv_heads};
  }
  rope.q_norm = weights.q_norm;
  rope.k_norm = weights.k_norm;
  rope.eps = shape_.rms_eps;
  rope.angles = weights_.angles;
  rope.dims = weights_.rope_dims;
  rope.norm_after = shape_.norm_after_rope;
  // The attention kernels multiply by 1 / sqrt(head_dim).
  if (shape_.attention_scale > 0) {
    rope.q_factor = shape_.attention_scale * std::sqrt(static_cast<float>(shape_.head_dim));
  }
  rope.qkv = chunk.memory.qkv;
  return rope;
}

void CudaLayers::attend(const Stream& stream, CudaChunk& chunk, int layer) {
  rope_and_store(stream.raw(), dtype_, rope_args(chunk, layer));
  AttentionArgs args;
  args.kv = kv_.layers[static_cast<std::size_t>(layer)];
  args.map = chunk.inputs.map;
  args.num_heads = own_.num_heads;
  args.groups = head_groups();
  args.num_rows = chunk.attention_rows();
  args.qkv = chunk.memory.qkv;
  args.qkv_stride = own_.qkv_width();
  args.out = options_.part.attention.shared() ? chunk.heads_send : chunk.memory.context;
  args.tiles = chunk.inputs.tiles;
  args.num_wide = chunk.inputs.num_wide;
  args.num_narrow = chunk.inputs.num_narrow;
  args.merges = chunk.inputs.merges;
  args.num_merges = chunk.inputs.num_merges;
  args.workspace = work_.attention;
  args.wgmma = by_wgmma_;
  args.totals = work_.attention_totals;
  cuda::attention(stream.raw(), dtype_, args);
}

void CudaLayers::output(const Stream& stream, CudaChunk& chunk, int layer) {
  const AttentionShare& share = options_.part.attention;
  const CudaLayer& weights = weights_.layers[static_cast<std::size_t>(layer)];
  if (share.shared() && is_sum(chunk.output)) {
    gemm_.run(stream, o_, weights.o, chunk.heads_send, chunk.all_rows, chunk.output_send);
    return;
  }
  const bool columns = share.shared() && chunk.output == OutputCut::columns;
  const void* heads = chunk.memory.context;
  if (share.shared()) {
    const std::int64_t own_row = own_.q_width() * static_cast<std::int64_t>(size_of(dtype_));
    MemberRows rows;
    rows.received = chunk.heads_recv;
    rows.own = columns ? chunk.heads_send : at(chunk.heads_send, chunk.first_own_row * own_row);
    rows.members = share.members;
    rows.place = share.place;
    rows.num_rows = columns ? static_cast<int>(chunk.all_rows) : chunk.num_tokens();
    rows.width = own_.q_width();
    join_columns(stream.raw(), dtype_, rows, work_.heads);
    heads = work_.heads;
  }
  if (columns) {
    gemm_.run(stream, o_columns_, own_output_columns(weights), heads, chunk.all_rows,
              chunk.output_send);
    return;
  }
  gemm_.run(stream, o_, weights.o, heads, chunk.num_tokens(), work_.out);
  add_to_x(stream, chunk, layer);
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
