#pragma once
// Where rows lie and go between nodes, when a token's row goes to another node once: from counts to
// the RowMoves of both ways, and to what the node forwards inside.

#include <cstdint>
#include <span>
#include <vector>

#include "app/plan/placement.hpp"
#include "comm/row_move.hpp"
#include "compute/backend.hpp"

namespace atl {

/// One rank's rows to and from the other nodes, in one layer. Rows are grouped by node; those for
/// this node are among them and stay. What arrives is grouped by who sent it. After construction
/// nothing allocates.
class AcrossRows {
 public:
  AcrossRows(const LayerPlacement& placement, const Layout& layout, int own_rank);

  int num_members() const { return num_members_; }
  /// Members of the rail that this rank sends rows to, and those that it gets rows from.
  const std::vector<int>& sends_to() const { return to_members_; }
  const std::vector<int>& receives_from() const { return from_; }

  /// Takes what route counted.
  void packed(const compute::Chunk& chunk);
  /// What to tell the receiver of a node: rows, rows on the way back, rows for each place there.
  std::size_t num_told(int node) const;
  void tell(int node, std::span<std::int32_t> counters) const;
  int member_of_node(int node) const { return to_node_[static_cast<std::size_t>(node)]; }
  /// Takes what a member told.
  void heard_from(int member, std::span<const std::int32_t> counters);

  void plan_sends(comm::RowMove& move) const;
  void plan_receives(comm::RowMove& move) const;
  /// Both directions of the way back.
  void plan_return(comm::RowMove& move) const;

  /// Rows that this rank forwards inside its node, for each of the node's places.
  std::span<const std::int32_t> node_counts() const { return node_counts_; }
  /// Rows that this rank forwards, in all.
  std::int64_t forwarded() const;
  /// For regroup and fold.
  compute::NodeRows node_rows() const;

 private:
  int num_members_ = 0;
  int own_node_ = 0;
  std::vector<std::int32_t> first_place_of_node_;  // [nodes + 1]
  std::vector<int> to_node_;                       // [nodes] -> member
  std::vector<int> to_members_, from_;
  std::vector<std::int32_t> place_counts_;          // [places], this rank's rows
  std::vector<std::int32_t> sent_, returned_;       // [nodes], this rank's rows
  std::vector<std::int32_t> heard_, heard_return_;  // [members], rows from others
  std::vector<std::int32_t> node_counts_;           // [places of this node], from all
};

}  // namespace atl
