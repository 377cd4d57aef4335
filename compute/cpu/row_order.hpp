#pragma once
// Which row of a chunk goes where: to its experts' places, to their nodes, and inside a node.

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "compute/backend.hpp"
#include "compute/cpu/memory.hpp"

namespace atl::compute {

/// Of this rank's tokens. A row's place follows from the order of tokens alone.
struct RowOrder {
  RowOrder() = default;
  RowOrder(const BackendOptions& options, std::int64_t tokens, HostArena& arena);

  /// Counts the rows of `num_tokens` tokens whose replicas are `chosen`, and tells `chunk`.
  void count(const ExpertPlaces& places, std::int64_t num_tokens, int top_k, Chunk& chunk);
  /// Rows straight to their experts: slots say where in dispatch_send.
  void for_experts(const ExpertPlaces& places, std::int64_t num_tokens, int top_k);
  /// Rows to nodes: `sent` says where in across_send, slots where among the rows that come back
  /// (for a token that one node adds up the first says it, the others are -1).
  void for_nodes(const ExpertPlaces& places, std::int64_t num_tokens, int top_k);
  /// Calls visit(node, row in across_send) for each node that a token goes to.
  template <class Visit>
  void for_each_node(const ExpertPlaces& places, std::int64_t token, int top_k,
                     const Visit& visit) const;
  /// The tail of a token's row to `node`.
  void write_places(const ExpertPlaces& places, std::int64_t token, int top_k, std::int32_t node,
                    std::int32_t* tail) const;
  /// Whether one node has all experts of a token that was sent to nodes.
  bool on_one_node(std::int64_t token, int top_k) const {
    return top_k == 1 || slots[static_cast<std::size_t>(token * top_k + 1)] < 0;
  }

  std::vector<std::int32_t> chosen;        // [tokens, top_k], replicas
  std::vector<std::int32_t> slots;         // [tokens, top_k], row among the results
  std::vector<std::int32_t> counts;        // [places], in sending order
  std::vector<std::int32_t> next_slot;     // the same, while ordering
  std::vector<std::int32_t> node_rows;     // [nodes], see Chunk
  std::vector<std::int32_t> node_returns;  // [nodes]
  // With BackendOptions::across:
  std::vector<std::int32_t> sent;         // [tokens, top_k], row in across_send
  std::vector<std::int32_t> next_row;     // [nodes], while ordering
  std::vector<std::int32_t> next_return;  // [nodes], while ordering
};

/// Of the rows that a rank forwards inside its node: its own ones, then those that arrived.
struct ForwardOrder {
  ForwardOrder() = default;
  ForwardOrder(const BackendOptions& options, std::int64_t rows, HostArena& arena);

  /// `places_of(row)` is the tail of a row. `next` has room for the places of the node.
  template <class PlacesOf>
  void regroup(const PlacesOf& places_of, std::int64_t rows, int top_k,
               std::vector<std::int32_t>& next);
  void fold(const NodeRows& rows, int top_k);
  bool has_all(std::int64_t row, int top_k) const;

  std::vector<std::int32_t> slots;    // [rows, top_k], row in dispatch_send, or -1
  std::vector<std::int32_t> returns;  // [rows], row where its results begin
};

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
  bool on_one_node() const {
    for (int j = 1; j < top_k; ++j) {
      if (node(j) != node(0)) return false;
    }
    return true;
  }
};

template <class Visit>
void RowOrder::for_each_node(const ExpertPlaces& places, std::int64_t token, int top_k,
                             const Visit& visit) const {
  const TokenNodes nodes{places, chosen.data() + token * top_k, top_k};
  for (int j = 0; j < top_k; ++j) {
    if (nodes.is_first_of_node(j))
      visit(nodes.node(j), sent[static_cast<std::size_t>(token * top_k + j)]);
  }
}

template <class PlacesOf>
void ForwardOrder::regroup(const PlacesOf& places_of, std::int64_t rows, int top_k,
                           std::vector<std::int32_t>& next) {
  std::fill(next.begin(), next.end(), 0);
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int32_t* places = places_of(row);
    for (int j = 0; j < top_k; ++j) {
      if (places[j] >= 0) ++next[static_cast<std::size_t>(places[j])];
    }
  }
  std::exclusive_scan(next.begin(), next.end(), next.begin(), 0);
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int32_t* places = places_of(row);
    for (int j = 0; j < top_k; ++j) {
      slots[static_cast<std::size_t>(row * top_k + j)] =
          places[j] >= 0 ? next[static_cast<std::size_t>(places[j])]++ : -1;
    }
  }
}

}  // namespace atl::compute
