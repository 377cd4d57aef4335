#pragma once
// Who works with whom: the ranks of a job in groups, by what they share. A value without MPI; from
// it app/run makes a communicator for each kind of group.

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace atl {

/// What the ranks of a group share. The first three are groups of a Layout, the rest of a
/// JobLayout.
enum class Share : std::uint8_t {
  exchange,   ///< rows of experts go between them
  node,       ///< of these, memory
  rail,       ///< of these, the way between nodes: the same place on each of them
  network,    ///< the model
  stage,      ///< layers of a network
  owner,      ///< heads of attention, and sequences
  holder,     ///< experts, each with some of their columns
  sequences,  ///< an owner's sequences: its ranks in all stages
  pipe,       ///< rows that go from stage to stage: the same place in each of them
};
inline constexpr int num_shares = 9;
inline constexpr int num_exchange_shares = 3;

/// All ranks of a job, or all of an exchange, each in exactly one group.
struct Grouping {
  std::vector<std::int32_t> group_of;     ///< [ranks]
  std::vector<std::int32_t> place_of;     ///< [ranks], inside the group
  std::vector<std::vector<int>> members;  ///< [groups][place] -> rank

  const std::vector<int>& group_with(int rank) const {
    return members[static_cast<std::size_t>(group_of[static_cast<std::size_t>(rank)])];
  }
};

/// The ranks between which rows of experts go, numbered from 0. Nodes may differ in ranks. Where
/// they do, the rails have no members of their own: all ranks are the one group, and a row to
/// another node goes to the rank there whose place is the sender's own place modulo that node's
/// number of ranks.
struct Layout {
  std::array<Grouping, num_exchange_shares> groups;

  const Grouping& of(Share share) const { return groups[static_cast<std::size_t>(share)]; }
  int num_ranks() const { return static_cast<int>(of(Share::exchange).group_of.size()); }
  int num_nodes() const { return static_cast<int>(of(Share::node).members.size()); }
  int node_of(int rank) const { return of(Share::node).group_of[static_cast<std::size_t>(rank)]; }
  /// The rank on `node` that takes in what `sender` has for that node.
  int receiver(int sender, int node) const;
};

/// Groups by `group_of` [ranks]; inside them ranks keep their order.
Grouping grouped(std::vector<std::int32_t> group_of);

/// `node_of` [ranks]: the node of each rank, numbered from 0 by first appearance.
Layout make_layout(const std::vector<int>& node_of);
/// All ranks on one node.
Layout one_node(int num_ranks);

}  // namespace atl
