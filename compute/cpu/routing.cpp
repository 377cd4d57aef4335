// The CPU backend's rows on their way to experts and back: router, packing, regrouping, sums.

#include <algorithm>
#include <cstring>

#include "compute/across_rows.hpp"
#include "compute/cpu/operations.hpp"

namespace atl::compute {

void CpuLayers::route(CpuChunk& chunk, int layer, RouteTo to) {
  const CpuLayer& weights = layers_[static_cast<std::size_t>(layer)];
  const ExpertPlaces& places = options_.part.places_of(layer);
  const int top_k = shape_.top_k;
  norm(chunk, weights.ffn_norm, work_.h.data());
  gemm_->run(weights.router, work_.h.data(), chunk.num_tokens(), chunk.memory.router_logits.data(),
             Finish::float32);
  if (chunk.forced.experts == nullptr) {
    choose(chunk, weights);
  } else {
    force(chunk, weights);
  }
  RowOrder& order = chunk.memory.order;
  for (std::int64_t t = 0; t < chunk.num_tokens(); ++t) {
    choose_replicas(places.table(), chunk.memory.experts.data() + t * top_k, top_k,
                    static_cast<int>(t), order.chosen.data() + t * top_k);
  }
  chunk.routed_to = to;
  order.count(places, chunk.num_tokens(), top_k, chunk);
  if (to == RouteTo::experts) {
    order.for_experts(places, chunk.num_tokens(), top_k);
    pack(chunk);
  } else {
    order.for_nodes(places, chunk.num_tokens(), top_k);
    pack_for_nodes(chunk, places);
  }
}

template <class Choose>
void CpuLayers::for_tokens(CpuChunk& chunk, const CpuLayer& weights, const Choose& choose) {
  const int num_experts = shape_.num_experts;
  const int top_k = shape_.top_k;
  const ChoiceOffsets& offsets = chunk.offsets;
  parallel_ranges(options_.num_threads, chunk.num_tokens(),
                  grain_rows(std::int64_t{16} * num_experts),
                  [&](std::int64_t begin, std::int64_t end, int thread) {
                    ChooseArgs args;
                    args.router = &shape_.router;
                    args.normalise = shape_.norm_topk_prob;
                    args.num_experts = num_experts;
                    args.top_k = top_k;
                    args.choices = work_.choices.as<float>() + thread * num_experts;
                    args.logit_bias = weights.router_bias.as<float>();
                    args.offsets = weights.selection_bias.as<float>();
                    for (std::int64_t t = begin; t < end; ++t) {
                      args.logits = chunk.memory.router_logits.data() + t * num_experts;
                      args.experts = chunk.memory.experts.data() + t * top_k;
                      args.weights = chunk.memory.weights.data() + t * top_k;
                      if (offsets.tables != nullptr) {
                        args.balance = offsets.tables + offsets.table_of_row[t] * num_experts;
                        args.given_up = &chunk.memory.given_up[static_cast<std::size_t>(t)];
                      }
                      choose(args);
                    }
                  });
}

void CpuLayers::choose(CpuChunk& chunk, const CpuLayer& weights) {
  for_tokens(chunk, weights, kernels_.choose);
}

/// The router computes its logits also where weights are given: replaying costs what routing does.
void CpuLayers::force(CpuChunk& chunk, const CpuLayer& weights) {
  const std::int64_t pairs = chunk.num_tokens() * shape_.top_k;
  std::copy_n(chunk.forced.experts, pairs, chunk.memory.experts.begin());
  if (chunk.forced.weights != nullptr) {
    std::copy_n(chunk.forced.weights, pairs, chunk.memory.weights.begin());
    return;
  }
  for_tokens(chunk, weights, kernels_.weights_of);
}

void CpuLayers::pack(CpuChunk& chunk) {
  const int width = shape_.hidden;
  const int top_k = shape_.top_k;
  const auto bytes = static_cast<std::size_t>(width * element_bytes_);
  const RowOrder& order = chunk.memory.order;
  parallel_ranges(options_.num_threads, chunk.num_tokens() * top_k, grain_rows(width),
                  [&](std::int64_t begin, std::int64_t end, int) {
                    for (std::int64_t i = begin; i < end; ++i) {
                      std::memcpy(row(chunk.dispatch_send, order.slots[i], width),
                                  row(work_.h, i / top_k, width), bytes);
                    }
                  });
}

void CpuLayers::pack_for_nodes(CpuChunk& chunk, const ExpertPlaces& places) {
  const RowOrder& order = chunk.memory.order;
  const int top_k = shape_.top_k;
  const AcrossRow form = across_row(shape_.hidden, options_.dtype, top_k);
  const auto bytes = static_cast<std::size_t>(shape_.hidden * element_bytes_);
  const auto write = [&](std::int64_t t) {
    order.for_each_node(places, t, top_k, [&](std::int32_t node, std::int32_t sent) {
      char* to = static_cast<char*>(chunk.across_send) + sent * form.bytes;
      std::memcpy(to, row(work_.h, t, shape_.hidden), bytes);
      order.write_places(places, t, top_k, node, form.places_of(to));
      std::copy_n(chunk.memory.weights.begin() + t * top_k, top_k, form.weights_of(to));
    });
  };
  parallel_ranges(options_.num_threads, chunk.num_tokens(), grain_rows(shape_.hidden),
                  [&](std::int64_t begin, std::int64_t end, int) {
                    for (std::int64_t t = begin; t < end; ++t) write(t);
                  });
}

const char* CpuLayers::forwarded_row(const CpuChunk& chunk, const NodeRows& rows,
                                     std::int64_t q) const {
  const std::int64_t bytes = across_row(shape_.hidden, options_.dtype, shape_.top_k).bytes;
  return q < rows.own_rows
             ? static_cast<const char*>(chunk.across_send) + (rows.own_first + q) * bytes
             : static_cast<const char*>(chunk.across_recv) + (q - rows.own_rows) * bytes;
}

void CpuLayers::regroup(CpuChunk& chunk, const NodeRows& rows) {
  const AcrossRow form = across_row(shape_.hidden, options_.dtype, shape_.top_k);
  const int top_k = shape_.top_k;
  const std::int64_t count = rows.own_rows + rows.arrived;
  ForwardOrder& order = chunk.forward.order;
  order.regroup([&](std::int64_t q) { return form.places_of(forwarded_row(chunk, rows, q)); },
                count, top_k, chunk.memory.order.next_slot);
  const auto bytes = static_cast<std::size_t>(shape_.hidden * element_bytes_);
  parallel_ranges(options_.num_threads, count, grain_rows(shape_.hidden),
                  [&](std::int64_t begin, std::int64_t end, int) {
                    for (std::int64_t i = begin * top_k; i < end * top_k; ++i) {
                      const std::int32_t slot = order.slots[static_cast<std::size_t>(i)];
                      if (slot < 0) continue;
                      std::memcpy(row(chunk.dispatch_send, slot, shape_.hidden),
                                  forwarded_row(chunk, rows, i / top_k), bytes);
                    }
                  });
}

void CpuLayers::fold(CpuChunk& chunk, const NodeRows& rows) {
  const AcrossRow form = across_row(shape_.hidden, options_.dtype, shape_.top_k);
  const int top_k = shape_.top_k;
  ForwardOrder& order = chunk.forward.order;
  order.fold(rows, top_k);
  const auto bytes = static_cast<std::size_t>(shape_.hidden * element_bytes_);
  const auto fold_row = [&](std::int64_t q) {
    const std::int32_t* slots = order.slots.data() + q * top_k;
    char* to = row(q < rows.own_rows ? chunk.across_return : chunk.across_done,
                   order.returns[static_cast<std::size_t>(q)], shape_.hidden);
    if (order.has_all(q, top_k)) {
      kernels_.fold(to, chunk.combine_recv, slots, form.weights_of(forwarded_row(chunk, rows, q)),
                    top_k, shape_.hidden);
      return;
    }
    for (int j = 0; j < top_k; ++j) {
      if (slots[j] < 0) continue;
      std::memcpy(to, row(chunk.combine_recv, slots[j], shape_.hidden), bytes);
      to += bytes;
    }
  };
  parallel_ranges(options_.num_threads, rows.own_rows + rows.arrived, grain_rows(shape_.hidden),
                  [&](std::int64_t begin, std::int64_t end, int) {
                    for (std::int64_t q = begin; q < end; ++q) fold_row(q);
                  });
}

void CpuLayers::merge(CpuChunk& chunk) {
  const int width = shape_.hidden;
  const int top_k = shape_.top_k;
  const bool from_nodes = chunk.routed_to == RouteTo::nodes;
  const void* results = from_nodes ? chunk.across_return : chunk.combine_recv;
  const auto merge_token = [&](std::int64_t t) {
    const std::int32_t* slots = chunk.memory.order.slots.data() + t * top_k;
    if (from_nodes && chunk.memory.order.on_one_node(t, top_k)) {  // which has added them up
      kernels_.add(x_row(chunk, t), row(chunk.across_return, slots[0], width), width);
    } else {
      kernels_.merge(x_row(chunk, t), results, slots, chunk.memory.weights.data() + t * top_k,
                     top_k, width);
    }
  };
  parallel_ranges(options_.num_threads, chunk.num_tokens(), grain_rows(width),
                  [&](std::int64_t begin, std::int64_t end, int) {
                    for (std::int64_t t = begin; t < end; ++t) merge_token(t);
                  });
}

}  // namespace atl::compute
