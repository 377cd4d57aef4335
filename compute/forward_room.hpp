#pragma once
// How many rows a rank has room for that it forwards inside its node.

#include <algorithm>
#include <cstdint>

#include "compute/backend.hpp"

namespace atl::compute {

/// Rows that a chunk has room for on their way through its node.
struct ForwardRoom {
  std::int64_t arrived = 0;    ///< from other nodes
  std::int64_t returned = 0;   ///< back to them
  std::int64_t forwarded = 0;  ///< inside the node, of dispatch_send and combine_recv

  bool operator==(const ForwardRoom&) const = default;
};

/// Tokens times the nodes that one can go to.
inline std::int64_t most_rows_for_nodes(const BackendOptions& options) {
  return std::int64_t{options.max_chunk_tokens} *
         std::min(options.shape.top_k, options.part.num_nodes());
}

/// What an even routing takes.
inline ForwardRoom even_forward_room(const BackendOptions& options) {
  const std::int64_t pairs = std::int64_t{options.max_chunk_tokens} * options.shape.top_k;
  return {most_rows_for_nodes(options), pairs, pairs};
}

}  // namespace atl::compute
