#include "compute/cpu/row_order.hpp"

#include <algorithm>
#include <numeric>

namespace atl::compute {

RowOrder::RowOrder(const BackendOptions& options, std::int64_t tokens, HostArena& arena) {
  const std::int64_t pairs = tokens * options.shape.top_k;
  const int nodes = options.part.num_nodes();
  chosen = arena.vector<std::int32_t>(pairs);
  slots = arena.vector<std::int32_t>(pairs);
  counts = arena.vector<std::int32_t>(options.part.most_places());
  next_slot = arena.vector<std::int32_t>(options.part.most_places());
  node_rows = arena.vector<std::int32_t>(nodes);
  node_returns = arena.vector<std::int32_t>(nodes);
  if (!options.across) return;
  sent = arena.vector<std::int32_t>(pairs);
  next_row = arena.vector<std::int32_t>(nodes);
  next_return = arena.vector<std::int32_t>(nodes);
}

void RowOrder::count(const ExpertPlaces& places, std::int64_t num_tokens, int top_k, Chunk& chunk) {
  const auto num_nodes = static_cast<std::size_t>(places.num_nodes());
  chunk.packed_counts = std::span(counts).first(static_cast<std::size_t>(places.num_places()));
  chunk.node_rows = std::span(node_rows).first(num_nodes);
  chunk.node_returns = std::span(node_returns).first(num_nodes);
  for (auto* all : {&counts, &node_rows, &node_returns}) std::fill(all->begin(), all->end(), 0);
  for (std::int64_t t = 0; t < num_tokens; ++t) {
    const TokenNodes token{places, chosen.data() + t * top_k, top_k};
    const bool one_node = num_nodes == 1 || token.on_one_node();
    for (int j = 0; j < top_k; ++j) {
      const ReplicaPlace& replica = places.replicas[static_cast<std::size_t>(token.chosen[j])];
      ++counts[static_cast<std::size_t>(replica.place)];
      const auto node = static_cast<std::size_t>(replica.node);
      if (!one_node || j == 0) ++node_returns[node];
      if (one_node ? j == 0 : token.is_first_of_node(j)) ++node_rows[node];
    }
  }
}

void RowOrder::for_experts(const ExpertPlaces& places, std::int64_t num_tokens, int top_k) {
  std::exclusive_scan(counts.begin(), counts.end(), next_slot.begin(), 0);
  for (std::int64_t i = 0; i < num_tokens * top_k; ++i) {
    const auto at = static_cast<std::size_t>(i);
    const auto place = places.replicas[static_cast<std::size_t>(chosen[at])].place;
    slots[at] = next_slot[static_cast<std::size_t>(place)]++;
  }
}

void RowOrder::for_nodes(const ExpertPlaces& places, std::int64_t num_tokens, int top_k) {
  std::exclusive_scan(node_rows.begin(), node_rows.end(), next_row.begin(), 0);
  std::exclusive_scan(node_returns.begin(), node_returns.end(), next_return.begin(), 0);
  for (std::int64_t t = 0; t < num_tokens; ++t) {
    const TokenNodes token{places, chosen.data() + t * top_k, top_k};
    const bool folded = token.on_one_node();
    for (int j = 0; j < top_k; ++j) {
      const auto node = static_cast<std::size_t>(token.node(j));
      const auto at = static_cast<std::size_t>(t * top_k + j);
      sent[at] = token.is_first_of_node(j) ? next_row[node]++ : next_row[node] - 1;
      slots[at] = folded && j > 0 ? -1 : next_return[node]++;
    }
  }
}

void RowOrder::write_places(const ExpertPlaces& places, std::int64_t token, int top_k,
                            std::int32_t node, std::int32_t* tail) const {
  const std::int32_t first = places.first_of_node[static_cast<std::size_t>(node)];
  for (int j = 0; j < top_k; ++j) {
    const auto& replica = places.replicas[static_cast<std::size_t>(
        chosen[static_cast<std::size_t>(token * top_k + j)])];
    tail[j] = replica.node == node ? replica.place - first : -1;
  }
}

ForwardOrder::ForwardOrder(const BackendOptions& options, std::int64_t rows, HostArena& arena) {
  slots = arena.vector<std::int32_t>(rows * options.shape.top_k);
  returns = arena.vector<std::int32_t>(rows);
}

bool ForwardOrder::has_all(std::int64_t row, int top_k) const {
  const auto first = slots.begin() + row * top_k;
  return std::find(first, first + top_k, -1) == first + top_k;
}

void ForwardOrder::fold(const NodeRows& rows, int top_k) {
  std::int64_t next = rows.own_return_first;
  for (std::int64_t row = 0; row < rows.own_rows + rows.arrived; ++row) {
    if (row == rows.own_rows) next = 0;  // from here on in across_done
    returns[static_cast<std::size_t>(row)] = static_cast<std::int32_t>(next);
    const auto first = slots.begin() + row * top_k;
    const auto here = std::count_if(first, first + top_k, [](std::int32_t s) { return s >= 0; });
    next += here == top_k ? 1 : here;
  }
}

}  // namespace atl::compute
