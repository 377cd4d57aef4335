#pragma once
// Where the rows of one MoE layer lie and go between those who have them and those who hold the
// experts: from counts to a RowMove and to the experts' blocks. The only place that knows; the
// driver, benchmarks and tests ask it.

#include <cstdint>
#include <span>
#include <vector>

#include "app/plan/placement.hpp"
#include "comm/row_move.hpp"
#include "compute/backend.hpp"

namespace atl {

/// Consecutive rows of one local expert, from one member.
struct ExpertBlock {
  std::int32_t local_expert = 0;
  std::int32_t num_rows = 0;
  bool own = false;  ///< this rank's, among the packed rows, where they stay; else arrived
  std::int64_t first_row = 0;  ///< among the packed rows, or among those that arrived
};

/// Where the rows of `block` lie in the buffers of `chunk`, and where their results go.
compute::RowBlock row_block(const ExpertBlock& block, const compute::Chunk& chunk,
                            std::size_t row_bytes);

/// The places of a group's members: member m has the `size` ones from `first` on, counted among
/// those of the group. Each place belongs to one member.
struct PlaceRange {
  std::int32_t first = 0;
  std::int32_t size = 0;
};
/// Of the ranks of one group, for one layer's placement.
std::vector<PlaceRange> places_of_members(const LayerPlacement& placement,
                                          const std::vector<int>& group);

/// One group's rows: all ranks', or those inside a node. Packed rows are grouped by place, rows
/// that arrive by the member they come from, and there by place. After construction nothing
/// allocates.
class ExpertRows {
 public:
  ExpertRows(std::vector<PlaceRange> members, int own_member);

  int num_members() const { return static_cast<int>(members_.size()); }
  /// Takes the counts of this rank's packed rows, one for each place of the group.
  void packed(std::span<const std::int32_t> counts);
  /// What to tell a member: this rank's rows for each of its experts.
  std::span<const std::int32_t> told_to(int member) const;
  /// Takes what a member told: its rows for each of this rank's experts, at least so many numbers.
  void heard_from(int member, std::span<const std::int32_t> counts);

  /// Rows to each member and where they lie; known after packed().
  void plan_sends(comm::RowMove& move) const;
  /// Rows from each member and where they will lie; known after heard_from() each other one.
  void plan_receives(comm::RowMove& move) const;
  /// The rows of each local expert, expert by expert and there member by member, empty ones left
  /// out.
  void blocks(std::vector<ExpertBlock>& blocks) const;
  /// blocks() makes so many at most.
  std::size_t most_blocks() const { return heard_.size(); }

 private:
  std::size_t num_local() const;
  std::span<const std::int32_t> counts_of(int member) const;

  std::vector<PlaceRange> members_;
  int own_;
  std::vector<std::int32_t> packed_;         // [places]
  std::vector<std::int64_t> packed_before_;  // [places + 1]
  std::vector<std::int32_t> heard_;  // [members, local experts]; the own part is told_to(own)
};

}  // namespace atl
