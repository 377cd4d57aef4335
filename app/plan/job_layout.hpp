#pragma once
// How the ranks of a job are divided: networks, stages of layers, ranks that share attention, ranks
// that share experts; the rest is expert parallelism. A value without MPI.

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "app/plan/layout.hpp"
#include "compute/types.hpp"

namespace atl {

/// Into how many parts what is divided.
struct Division {
  int replicas = 1;   ///< networks, each with the whole model
  int pp = 1;         ///< stages of a network, each with some layers
  int tp = 1;         ///< ranks that share attention and its sequences
  int expert_tp = 1;  ///< ranks that share each expert

  bool operator==(const Division&) const = default;
};

/// Ranks are in networks, there in stages, there in owners and holders: neighbours in the order of
/// MPI's ranks, which are neighbours on a node, share most.
class JobLayout {
 public:
  JobLayout() = default;
  /// `node_of` [ranks], numbered from 0 by first appearance. Throws Error, which says what would
  /// work, where the ranks do not divide so.
  JobLayout(const Division& division, const std::vector<int>& node_of);

  const Division& division() const { return division_; }
  int num_ranks() const { return static_cast<int>(node_of_.size()); }
  int num_owners() const { return num_ranks() / division_.pp / division_.tp; }
  int ranks_of_stage() const { return num_ranks() / division_.replicas / division_.pp; }
  /// Ranks between which rows of experts go, in each group.
  int ranks_of_exchange() const { return ranks_of_stage() / division_.expert_tp; }

  /// Shares from Share::network on, and Share::exchange.
  const Grouping& of(Share share) const { return groups_[static_cast<std::size_t>(share)]; }
  int stage_of(int rank) const;
  int num_nodes() const { return num_nodes_; }
  int node_of(int rank) const { return node_of_[static_cast<std::size_t>(rank)]; }
  /// Nodes of the ranks that exchange rows with `rank`, itself among them.
  Layout exchange_of(int rank) const;
  /// Whether `rank` speaks for its sequences: the first of those that have them.
  bool speaks(int rank) const {
    return of(Share::sequences).place_of[static_cast<std::size_t>(rank)] == 0;
  }

 private:
  Division division_;
  std::vector<int> node_of_;
  int num_nodes_ = 0;
  std::array<Grouping, num_shares> groups_;  // none of a node or rail
};

/// The layers of a stage: [first, end). Contiguous, numbers that differ by one at most.
struct LayerRange {
  int first = 0;
  int end = 0;
};
LayerRange layers_of_stage(int num_layers, int stage, int num_stages);

/// Rows of a chunk that the member at `place` of an owner has: [first, end).
struct RowRange {
  std::int64_t first = 0;
  std::int64_t end = 0;
  std::int64_t size() const { return end - first; }
};
inline RowRange rows_of_member(std::int64_t all, int place, int members) {
  return {all * place / members, all * (place + 1) / members};
}

/// Throws Error, which says what would work, where a model cannot be divided so: heads, hidden and
/// inner widths, layers.
void require_divides(const Division& division, const ModelShape& shape);

/// Who is with whom, for the eye: one line for each owner.
std::string text_of(const JobLayout& layout, const ModelShape& shape);

}  // namespace atl
