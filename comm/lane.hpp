#pragma once
// One chunk's messages inside one group of ranks.

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>

#include "comm/communicator.hpp"
#include "comm/counters.hpp"
#include "comm/row_move.hpp"
#include "comm/transports/transport.hpp"
#include "compute/device_memory.hpp"

namespace atl::comm {

struct LaneOptions {
  std::optional<Peers> peers;  ///< that get counters; none: all others of the group
  TransportKind transport = TransportKind::ialltoallv;
  std::size_t row_bytes = 0;
  int counts_per_member = 1;  ///< counters of each pair of members
  /// A pair's rows go with its counters in one message where both fit into so much (0: never; rows
  /// must be in host memory otherwise).
  std::size_t first_message_bytes = 0;
  compute::DeviceMemory* device = nullptr;  ///< where the rows lie; null: host memory
};

/// A communicator of its own, counters that go ahead of rows, and a transport for the rows. Each
/// chunk has its own, because non-blocking collectives must be started in the same order on all
/// ranks of a communicator and chunks overtake one another. One move is under way at a time; after
/// construction nothing allocates.
class Lane {
 public:
  /// Collective over `group`, which is duplicated.
  Lane(const Communicator& group, const LaneOptions& options);

  Counters& counters() { return counters_; }
  const Counters& counters() const { return counters_; }

  /// Moves rows of `send` into `recv`; both stay untouched until done(), `move` is copied.
  void start(const RowMove& move, const void* send, void* recv);
  /// The same where `move` is what the counters told: rows that came with them are there already.
  void start_told(const RowMove& move, const void* send, void* recv);
  void poll_with(Poller& poller) { rows_->poll_with(poller); }
  /// As the last poll found it.
  bool done() const { return rows_->done(); }
  /// Drives MPI's progress; returns done().
  bool test();
  Awaited awaited() const { return rows_->awaited(); }
  /// Requests that are under way at the same time, at most.
  std::size_t most_requests() const {
    return std::max(counters_.most_requests(), 2 * static_cast<std::size_t>(comm_.size()));
  }

 private:
  Communicator comm_;
  RowType row_type_;
  Counters counters_;
  std::unique_ptr<Transport> rows_;
  RowMove posted_;  // what MPI moves: the move less the rows that went with the counters
  Poller poller_;   // of test()
};

}  // namespace atl::comm
