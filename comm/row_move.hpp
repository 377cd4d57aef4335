#pragma once
// Who gets which rows inside one group of ranks, as a value. Knows no MPI: plans, the driver and
// benchmarks share it.

#include <cstdint>
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

}  // namespace atl::comm
