// The CUDA backend's rows on their way to experts and back: router, packing, regrouping, sums.

#include <algorithm>

#include "compute/across_rows.hpp"
#include "compute/cuda/error.hpp"
#include "compute/cuda/operations.hpp"
#include "compute/error.hpp"

namespace atl::compute::cuda {

void CudaLayers::place_experts(int layer, std::span<const std::int32_t> experts,
                               const ExpertPlaces& places) {
  options_.part.place_experts(layer, experts, places);
  const std::int32_t kind = options_.part.places_of_layer[static_cast<std::size_t>(layer)];
  weights_.load_places(options_, static_cast<std::size_t>(kind));
  check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");  // as in CudaWeights::finish()
}

const CudaPlaces& CudaLayers::places_of(int layer) const {
  const std::int32_t kind = options_.part.places_of_layer[static_cast<std::size_t>(layer)];
  return weights_.places[static_cast<std::size_t>(kind)];
}

/// An operation of its own, beside the other chunks' work: route() follows it.
void CudaLayers::upload_forced(CudaChunk& chunk, int layer) {
  Op op(queue_, "forced choices", layer, &chunk.order);
  chunk.upload_forced(op.begin(StreamId::copy));
  op.close();
}

void CudaLayers::upload_offsets(CudaChunk& chunk, int layer) {
  Op op(queue_, "offsets of choices", layer, &chunk.order);
  chunk.upload_offsets(op.begin(StreamId::copy));
  op.close();
}

/// The counts reach the host while the rows are packed.
Event CudaLayers::route(CudaChunk& chunk, int layer, RouteTo to) {
  const bool forced = chunk.forced.experts != nullptr;
  const bool offset = !forced && chunk.offsets.tables != nullptr;
  if (forced && chunk.num_tokens() > 0) upload_forced(chunk, layer);
  if (offset && chunk.num_tokens() > 0) upload_offsets(chunk, layer);
  Op op(queue_, "route", layer, &chunk.order);
  const Stream& stream = op.begin(StreamId::compute);
  const ExpertPlaces& places = options_.part.places_of(layer);
  const int rows = chunk.num_tokens();
  chunk.routed_to = to;
  // No operation writes the counts meanwhile: those before have been used.
  chunk.set_counts(places, rows);
  if (rows == 0) return op.close();
  const CudaLayer& weights = weights_.layers[static_cast<std::size_t>(layer)];
  norm(stream, chunk, weights.ffn_norm);
  gemm_.run(stream, router_, weights.router, chunk.memory.normed, rows, work_.router);
  RouteArgs args;
  args.logits = work_.router;
  args.replicas = places_of(layer).table();
  args.has_replicas = places.has_replicas();
  args.for_nodes = to == RouteTo::nodes;
  args.num_tokens = rows;
  args.num_experts = shape_.num_experts;
  args.num_places = places.num_places();
  args.num_nodes = places.num_nodes();
  args.top_k = shape_.top_k;
  args.renormalise = shape_.norm_topk_prob;
  args.router = shape_.router;
  args.described = shape_.router != Router();
  args.logit_bias = weights.router_bias;
  args.selection_bias = weights.selection_bias;
  args.forced = forced;
  args.forced_weights = forced && chunk.forced.weights != nullptr;
  if (offset) {
    args.offsets = chunk.row_offsets();
    args.given_up = chunk.given_up();
  }
  args.experts = chunk.memory.experts;
  args.weights = chunk.memory.weights;
  args.chosen = chunk.memory.chosen;
  args.slots = chunk.memory.slots;
  args.sent = chunk.memory.sent;
  args.counts = chunk.memory.counts;
  args.scratch = work_.route_scratch;
  cuda::route(stream.raw(), args);

  const Stream& copying = op.begin(StreamId::copy);
  check(cudaMemcpyAsync(chunk.counts.data(), chunk.memory.counts,
                        static_cast<std::size_t>(args.num_counts()) * sizeof(std::int32_t),
                        cudaMemcpyDeviceToHost, copying.raw()),
        "cudaMemcpyAsync");
  pack(op.begin(StreamId::pack), chunk, layer, to);
  return op.close();
}

void CudaLayers::pack(const Stream& stream, CudaChunk& chunk, int layer, RouteTo to) {
  const ChunkMemory& memory = chunk.memory;
  if (to == RouteTo::experts) {
    cuda::pack(stream.raw(), dtype_, memory.normed, memory.slots, chunk.dispatch_send,
               chunk.num_tokens(), shape_.top_k, shape_.hidden);
    return;
  }
  PackForNodesArgs args;
  args.rows = memory.normed;
  args.form = across_row(shape_.hidden, dtype_, shape_.top_k);
  args.replicas = places_of(layer).table();
  args.first_of_node = places_of(layer).first_of_node;
  args.chosen = memory.chosen;
  args.weights = memory.weights;
  args.sent = memory.sent;
  args.packed = chunk.across_send;
  args.num_tokens = chunk.num_tokens();
  args.top_k = shape_.top_k;
  args.hidden = shape_.hidden;
  pack_for_nodes(stream.raw(), dtype_, args);
}

ForwardedRows CudaLayers::forwarded_rows(const CudaChunk& chunk, int layer,
                                         const NodeRows& rows) const {
  const ExpertPlaces& places = options_.part.places_of(layer);
  const auto own = static_cast<std::size_t>(places.own_node);
  ForwardedRows forwarded;
  forwarded.form = across_row(shape_.hidden, dtype_, shape_.top_k);
  forwarded.own =
      static_cast<const std::byte*>(chunk.across_send) + rows.own_first * forwarded.form.bytes;
  forwarded.arrived = chunk.across_recv;
  forwarded.num_own = static_cast<int>(rows.own_rows);
  forwarded.num_rows = static_cast<int>(rows.own_rows + rows.arrived);
  forwarded.top_k = shape_.top_k;
  forwarded.hidden = shape_.hidden;
  forwarded.num_places = places.first_of_node[own + 1] - places.first_of_node[own];
  forwarded.slots = chunk.forward.slots;
  forwarded.returns = chunk.forward.returns;
  forwarded.scratch = work_.forward_scratch;
  return forwarded;
}

Event CudaLayers::regroup(CudaChunk& chunk, int layer, const NodeRows& rows) {
  Op op(queue_, "regroup", layer, &chunk.order);
  const Stream& stream = op.begin(StreamId::pack);
  cuda::regroup(stream.raw(), dtype_, forwarded_rows(chunk, layer, rows), chunk.dispatch_send);
  return op.close();
}

Event CudaLayers::fold(CudaChunk& chunk, int layer, const NodeRows& rows) {
  Op op(queue_, "fold", layer, &chunk.order);
  const Stream& stream = op.begin(StreamId::pack);
  std::byte* const own_out = static_cast<std::byte*>(chunk.across_return) +
                             static_cast<std::size_t>(rows.own_return_first) * row_bytes();
  cuda::fold(stream.raw(), dtype_, forwarded_rows(chunk, layer, rows), chunk.combine_recv, own_out,
             chunk.across_done);
  return op.close();
}

Event CudaLayers::merge(CudaChunk& chunk, int layer) {
  Op op(queue_, "merge", layer, &chunk.order);
  const Stream& stream = op.begin(switches_.merge_stream ? StreamId::merge : StreamId::pack);
  if (chunk.num_tokens() == 0) return op.close();
  const float* const next = norm_after(layer);
  MergeArgs args;
  args.x = chunk.memory.x;
  args.from_nodes = chunk.routed_to == RouteTo::nodes;
  args.rows = args.from_nodes ? chunk.across_return : chunk.combine_recv;
  args.slots = chunk.memory.slots;
  args.weights = chunk.memory.weights;
  args.num_tokens = chunk.num_tokens();
  args.top_k = shape_.top_k;
  args.hidden = shape_.hidden;
  args.norm_weight = next;
  args.eps = shape_.rms_eps;
  args.normed = chunk.memory.normed;
  cuda::merge(stream.raw(), dtype_, args);
  chunk.normed_with = next;
  return op.close();
}

}  // namespace atl::compute::cuda
