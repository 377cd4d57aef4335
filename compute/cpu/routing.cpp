// The CPU backend's rows on their way to experts and back: router, packing, regrouping, sums.

#include <algorithm>
#include <cstring>
#include <numeric>

#include "compute/across_rows.hpp"
#include "compute/cpu/operations.hpp"

namespace atl::compute {

namespace {

/// Choices of one token, with the node that each goes to.
struct TokenNodes {
  const ExpertPlaces& places;
  const std::int32_t* chosen;  // [top_k], replicas
  int top_k;

  std::int32_t node(int j) const {
    return places.replicas[static_cast<std::size_t>(chosen[j])].node;
  }
  bool is_first_of_node(int j) const {
    for (int i = 0; i < j; ++i) {
      if (node(i) == node(j)) return false;
    }
    return true;
  }
  int on_node_of(int j) const {
    int count = 0;
    for (int i = 0; i < top_k; ++i) count += node(i) == node(j) ? 1 : 0;
    return count;
  }
  bool on_one_node() const { return on_node_of(0) == top_k; }
};

}  // namespace

void CpuLayers::route(CpuChunk& chunk, int layer, RouteTo to) {
  const CpuLayer& weights = layers_[static_cast<std::size_t>(layer)];
  const ExpertPlaces& places = options_.part.places_of(layer);
  const std::int64_t num_tokens = chunk.num_tokens();
  const int num_experts = shape_.num_experts;
  const int top_k = shape_.top_k;
  norm(chunk, weights.ffn_norm);
  gemm_->run(weights.router, work_.h.data(), num_tokens, chunk.memory.router_logits.data(),
             Finish::float32);
  const ReplicaTable table = places.table();
  parallel_ranges(options_.num_threads, num_tokens, grain_rows(std::int64_t{16} * num_experts),
                  [&](std::int64_t begin, std::int64_t end, int) {
                    for (std::int64_t t = begin; t < end; ++t) {
                      std::int32_t* experts = chunk.memory.experts.data() + t * top_k;
                      kernels_.top_k(chunk.memory.router_logits.data() + t * num_experts,
                                     num_experts, top_k, shape_.norm_topk_prob, experts,
                                     chunk.memory.weights.data() + t * top_k);
                      choose_replicas(table, experts, top_k, static_cast<int>(t),
                                      chunk.memory.chosen.data() + t * top_k);
                    }
                  });
  chunk.routed_to = to;
  count_rows(chunk, places);
  if (to == RouteTo::experts) {
    pack(chunk, places);
  } else {
    pack_for_nodes(chunk, places);
  }
}

void CpuLayers::count_rows(CpuChunk& chunk, const ExpertPlaces& places) {
  CpuChunkMemory& memory = chunk.memory;
  const auto num_places = static_cast<std::size_t>(places.num_places());
  const auto num_nodes = static_cast<std::size_t>(places.num_nodes());
  chunk.packed_counts = std::span(memory.counts).first(num_places);
  chunk.node_rows = std::span(memory.node_rows).first(num_nodes);
  chunk.node_returns = std::span(memory.node_returns).first(num_nodes);
  std::fill(memory.counts.begin(), memory.counts.end(), 0);
  std::fill(memory.node_rows.begin(), memory.node_rows.end(), 0);
  std::fill(memory.node_returns.begin(), memory.node_returns.end(), 0);
  const int top_k = shape_.top_k;
  for (std::int64_t t = 0; t < chunk.num_tokens(); ++t) {
    const TokenNodes token{places, memory.chosen.data() + t * top_k, top_k};
    const bool one_node = num_nodes == 1 || token.on_one_node();
    for (int j = 0; j < top_k; ++j) {
      const ReplicaPlace& replica = places.replicas[static_cast<std::size_t>(token.chosen[j])];
      ++memory.counts[static_cast<std::size_t>(replica.place)];
      const auto node = static_cast<std::size_t>(replica.node);
      if (!one_node || j == 0) ++memory.node_returns[node];
      if (one_node ? j == 0 : token.is_first_of_node(j)) ++memory.node_rows[node];
    }
  }
}

void CpuLayers::pack(CpuChunk& chunk, const ExpertPlaces& places) {
  CpuChunkMemory& memory = chunk.memory;
  const int top_k = shape_.top_k;
  const std::int64_t pairs = chunk.num_tokens() * top_k;
  std::exclusive_scan(memory.counts.begin(), memory.counts.end(), memory.next_slot.begin(), 0);
  for (std::int64_t i = 0; i < pairs; ++i) {
    const auto at = static_cast<std::size_t>(i);
    const auto place = places.replicas[static_cast<std::size_t>(memory.chosen[at])].place;
    memory.slots[at] = memory.next_slot[static_cast<std::size_t>(place)]++;
  }
  const int width = shape_.hidden;
  const auto bytes = static_cast<std::size_t>(width * element_bytes_);
  parallel_ranges(options_.num_threads, pairs, grain_rows(width),
                  [&](std::int64_t begin, std::int64_t end, int) {
                    for (std::int64_t i = begin; i < end; ++i) {
                      std::memcpy(row(chunk.dispatch_send, memory.slots[i], width),
                                  row(work_.h, i / top_k, width), bytes);
                    }
                  });
}

/// Rows with tails into across_send. `sent` gets each choice's row there, `slots` its row among
/// those that come back: for a token that one node adds up the first says where, the others -1.
void CpuLayers::pack_for_nodes(CpuChunk& chunk, const ExpertPlaces& places) {
  CpuChunkMemory& memory = chunk.memory;
  const int top_k = shape_.top_k;
  std::exclusive_scan(memory.node_rows.begin(), memory.node_rows.end(), memory.next_row.begin(), 0);
  std::exclusive_scan(memory.node_returns.begin(), memory.node_returns.end(),
                      memory.next_return.begin(), 0);
  for (std::int64_t t = 0; t < chunk.num_tokens(); ++t) {
    const TokenNodes token{places, memory.chosen.data() + t * top_k, top_k};
    std::int32_t* sent = memory.sent.data() + t * top_k;
    std::int32_t* slots = memory.slots.data() + t * top_k;
    const bool folded = token.on_one_node();
    for (int j = 0; j < top_k; ++j) {
      const auto node = static_cast<std::size_t>(token.node(j));
      const bool first = token.is_first_of_node(j);
      sent[j] = first ? memory.next_row[node]++ : memory.next_row[node] - 1;
      slots[j] = folded && j > 0 ? -1 : memory.next_return[node]++;
    }
  }
  const AcrossRow form = across_row(shape_.hidden, options_.dtype, top_k);
  const auto bytes = static_cast<std::size_t>(shape_.hidden * element_bytes_);
  const auto write = [&](std::int64_t t) {
    const TokenNodes token{places, memory.chosen.data() + t * top_k, top_k};
    for (int j = 0; j < top_k; ++j) {
      if (!token.is_first_of_node(j)) continue;
      const std::int32_t node = token.node(j);
      char* to = static_cast<char*>(chunk.across_send) + memory.sent[t * top_k + j] * form.bytes;
      std::memcpy(to, row(work_.h, t, shape_.hidden), bytes);
      for (int i = 0; i < top_k; ++i) {
        const auto& replica = places.replicas[static_cast<std::size_t>(token.chosen[i])];
        const std::int32_t first = places.first_of_node[static_cast<std::size_t>(node)];
        form.places_of(to)[i] = replica.node == node ? replica.place - first : -1;
      }
      std::copy_n(memory.weights.begin() + t * top_k, top_k, form.weights_of(to));
    }
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

void CpuLayers::regroup(CpuChunk& chunk, int layer, const NodeRows& rows) {
  const ExpertPlaces& places = options_.part.places_of(layer);
  const AcrossRow form = across_row(shape_.hidden, options_.dtype, shape_.top_k);
  const int top_k = shape_.top_k;
  const std::int64_t count = rows.own_rows + rows.arrived;
  const auto places_of = [&](std::int64_t q) {
    return form.places_of(forwarded_row(chunk, rows, q));
  };
  std::vector<std::int32_t>& next = chunk.memory.next_slot;
  std::fill(next.begin(), next.end(), 0);
  const auto own = static_cast<std::size_t>(places.own_node);
  const auto here = static_cast<std::size_t>(places.first_of_node[own + 1]) -
                    static_cast<std::size_t>(places.first_of_node[own]);
  for (std::int64_t q = 0; q < count; ++q) {
    for (int j = 0; j < top_k; ++j) {
      if (places_of(q)[j] >= 0) ++next[static_cast<std::size_t>(places_of(q)[j])];
    }
  }
  std::exclusive_scan(next.begin(), next.begin() + static_cast<std::ptrdiff_t>(here), next.begin(),
                      0);
  for (std::int64_t q = 0; q < count; ++q) {
    for (int j = 0; j < top_k; ++j) {
      const std::int32_t place = places_of(q)[j];
      chunk.forward.slots[static_cast<std::size_t>(q * top_k + j)] =
          place >= 0 ? next[static_cast<std::size_t>(place)]++ : -1;
    }
  }
  const auto bytes = static_cast<std::size_t>(shape_.hidden * element_bytes_);
  parallel_ranges(options_.num_threads, count, grain_rows(shape_.hidden),
                  [&](std::int64_t begin, std::int64_t end, int) {
                    for (std::int64_t i = begin * top_k; i < end * top_k; ++i) {
                      const std::int32_t slot = chunk.forward.slots[static_cast<std::size_t>(i)];
                      if (slot < 0) continue;
                      std::memcpy(row(chunk.dispatch_send, slot, shape_.hidden),
                                  forwarded_row(chunk, rows, i / top_k), bytes);
                    }
                  });
}

void CpuLayers::fold(CpuChunk& chunk, const NodeRows& rows) {
  const AcrossRow form = across_row(shape_.hidden, options_.dtype, shape_.top_k);
  const int top_k = shape_.top_k;
  const std::int64_t count = rows.own_rows + rows.arrived;
  const auto slots_of = [&](std::int64_t q) {
    return chunk.forward.slots.data() + static_cast<std::size_t>(q * top_k);
  };
  std::int64_t next = rows.own_return_first;
  for (std::int64_t q = 0; q < count; ++q) {
    if (q == rows.own_rows) next = 0;  // from here on in across_done
    const auto here = std::count_if(slots_of(q), slots_of(q) + top_k,
                                    [](std::int32_t slot) { return slot >= 0; });
    chunk.forward.returns[static_cast<std::size_t>(q)] = static_cast<std::int32_t>(next);
    next += here == top_k ? 1 : here;
  }
  const auto bytes = static_cast<std::size_t>(shape_.hidden * element_bytes_);
  const auto fold_row = [&](std::int64_t q) {
    const std::int32_t* slots = slots_of(q);
    char* to = row(q < rows.own_rows ? chunk.across_return : chunk.across_done,
                   chunk.forward.returns[static_cast<std::size_t>(q)], shape_.hidden);
    if (std::find(slots, slots + top_k, -1) == slots + top_k) {
      kernels_.fold(to, chunk.combine_recv, slots,
                    form.weights_of(forwarded_row(chunk, rows, q)), top_k, shape_.hidden);
      return;
    }
    for (int j = 0; j < top_k; ++j) {
      if (slots[j] < 0) continue;
      std::memcpy(to, row(chunk.combine_recv, slots[j], shape_.hidden), bytes);
      to += bytes;
    }
  };
  parallel_ranges(options_.num_threads, count, grain_rows(shape_.hidden),
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
    const std::int32_t* slots = chunk.memory.slots.data() + t * top_k;
    if (from_nodes && (top_k == 1 || slots[1] < 0)) {  // a node has added up all of them
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
