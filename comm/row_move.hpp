#pragma once
// Who gets which rows inside one group of ranks, as a value. Knows no MPI: plans, the driver and
// benchmarks share it.

#include <cstdint>
#include <span>
#include <vector>

namespace atl::comm {

/// Counts and offsets in rows, one entry for each member of the group. The own entry has count 0:
/// own rows never go through MPI.
struct RowMove {
  std::vector<int> send_counts, send_offsets;  ///< [members]
  std::vector<int> recv_counts, recv_offsets;  ///< [members]

  explicit RowMove(int num_members = 0);
  /// The way back: what was received is sent, what was sent is received, at the same offsets.
  void reverse();
  std::int64_t rows_sent() const;
  std::int64_t rows_received() const;
};

/// Where the rows of a group's members begin, one member's after the other's: member m has
/// [first[m], first[m + 1]) of all. [members + 1]
using FirstRows = std::span<const std::int64_t>;

// The moves of ranks that share work on rows of all of them, for the member at `place`. Each member
// makes its own from the same `first`; what a rank sends and what comes to it may be in one buffer.
/// The own rows go to all: [all] there and here.
void plan_rows_to_all(FirstRows first, int place, RowMove& move);
/// A part of each row, which this rank has, goes to all: [members, all], a part for each member.
void plan_parts_to_all(FirstRows first, int place, RowMove& move);
/// From [all], the part of each row that this rank has, to the row's member; what comes for the
/// own rows is [members, own].
void plan_parts_to_owners(FirstRows first, int place, RowMove& move);

}  // namespace atl::comm
