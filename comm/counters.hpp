#pragma once
// Numbers that each member of a group tells each other one, and small rows in the same message.

#include <cstdint>
#include <span>
#include <vector>

#include "comm/communicator.hpp"
#include "comm/poller.hpp"
#include "comm/row_move.hpp"

namespace atl::comm {

/// Whom a member tells, and whom it hears: others of its group. Where a tells b, b hears a.
struct Peers {
  std::vector<int> to;
  std::vector<int> from;
};
/// Everyone else, in a rotated order, so that not all ranks send to the same one first.
Peers all_others(const Communicator& comm);

/// Pairs of members have counters: one message each, all at once. A library's MPI_Ialltoall
/// takes several rounds for small messages, and in each round every rank must get to run, which is
/// slow where ranks share cores. After construction nothing allocates.
class Counters {
 public:
  /// Each member tells its peers `per_member` numbers. Its rows of `row_bytes` each go along where
  /// both fit into `first_message_bytes` (0: never). `comm` outlives this and is used by nothing
  /// else at the tag.
  Counters(const Communicator& comm, Peers peers, int per_member, std::size_t row_bytes,
           std::size_t first_message_bytes);
  ~Counters();
  Counters(const Counters&) = delete;
  Counters& operator=(const Counters&) = delete;

  /// Counters for a member, [per_member]; written before start().
  std::span<std::int32_t> to(int member) { return part_of(to_, member); }
  /// Counters from a member, [per_member]; valid after done().
  std::span<const std::int32_t> from(int member) { return part_of(from_, member); }

  /// `rows` are those that `move` will send; few enough of them are sent before this returns.
  void start(const RowMove& move, const void* rows);
  void poll_with(Poller& poller) { poller.add(requests_); }
  /// As the last poll found it. No call of MPI.
  bool done();
  /// Drives MPI's progress; returns done().
  bool test() { return requests_.test() && done(); }
  Awaited awaited() const;
  /// Requests that are under way at the same time, at most.
  std::size_t most_requests() const { return peers_.to.size() + peers_.from.size(); }
  const Peers& peers() const { return peers_; }

  /// Takes from `move` what start() has sent along; after done() puts into `recv` what came along,
  /// and takes that from it too.
  void take_rows(RowMove& move, void* recv) const;

 private:
  std::span<std::int32_t> part_of(std::vector<std::int32_t>& all, int member) const {
    return std::span(all).subspan(static_cast<std::size_t>(member * per_member_),
                                  static_cast<std::size_t>(per_member_));
  }
  std::size_t header_bytes() const {
    return static_cast<std::size_t>(per_member_) * sizeof(std::int32_t);
  }
  bool goes_along(int rows) const { return rows > 0 && rows <= most_rows_; }
  void make_requests();

  const Communicator& comm_;
  Peers peers_;
  int per_member_;
  std::size_t row_bytes_;
  int most_rows_ = 0;                                   // of a message
  std::size_t message_bytes_;                           // of the largest
  Requests requests_;                                   // receives (persistent), then sends
  std::vector<std::int32_t> to_, from_;                 // [members, per_member]
  std::vector<std::byte> messages_to_, messages_from_;  // [members, message_bytes]
};

}  // namespace atl::comm
