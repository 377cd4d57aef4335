#pragma once
// Who works with whom: the ranks of a job in groups, by what they share. A value without MPI; from
// it app/run makes a communicator for each kind of group.

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace atl {

/// What the ranks of a group share.
enum class Share : std::uint8_t {
  stage,  ///< the same layers: all ranks
  node,   ///< memory
  rail,   ///< the way between nodes: the same place on each of them
};
inline constexpr int num_shares = 3;

/// All ranks, each in exactly one group.
struct Grouping {
  std::vector<std::int32_t> group_of;     ///< [ranks]
  std::vector<std::int32_t> place_of;     ///< [ranks], inside the group
  std::vector<std::vector<int>> members;  ///< [groups][place] -> rank

  const std::vector<int>& group_with(int rank) const {
    return members[static_cast<std::size_t>(group_of[static_cast<std::size_t>(rank)])];
  }
};

/// Nodes may differ in ranks. Where they do, the rails have no members of their own: the stage is
/// the one group, and a row to another node goes to the rank there whose place is the sender's own
/// place modulo that node's number of ranks.
struct Layout {
  std::array<Grouping, num_shares> groups;

  const Grouping& of(Share share) const { return groups[static_cast<std::size_t>(share)]; }
  int num_ranks() const { return static_cast<int>(of(Share::stage).group_of.size()); }
  int num_nodes() const { return static_cast<int>(of(Share::node).members.size()); }
  int node_of(int rank) const { return of(Share::node).group_of[static_cast<std::size_t>(rank)]; }
  /// The rank on `node` that takes in what `sender` has for that node.
  int receiver(int sender, int node) const;
};

/// `node_of` [ranks]: the node of each rank, numbered from 0 by first appearance.
Layout make_layout(const std::vector<int>& node_of);
/// All ranks on one node.
Layout one_node(int num_ranks);

}  // namespace atl
