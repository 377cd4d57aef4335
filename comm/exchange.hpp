#pragma once
// Tokens between ranks: grouped by destination, one message per peer, counted in rows (tokens).

#include <mpi.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "comm/communicator.hpp"
#include "comm/requests.hpp"
#include "comm/staging.hpp"
#include "compute/device_memory.hpp"

namespace atl::comm {

enum class TransportKind : std::uint8_t {
  ialltoallv,       ///< one MPI_Ialltoallv
  pairwise,         ///< one MPI_Isend and one MPI_Irecv per peer that has rows
  pairwise_staged,  ///< device memory, through pinned host memory: pieces to each peer
};
std::string_view name_of(TransportKind kind);
constexpr bool is_staged(TransportKind kind) {
  return kind == TransportKind::pairwise_staged;
}

/// Who gets which rows. Offsets and counts are in rows; entries of the own rank have count 0, since
/// the own shard never goes through MPI.
struct ExchangePlan {
  std::vector<int> send_counts, send_offsets;  ///< [ranks]
  std::vector<int> recv_counts, recv_offsets;  ///< [ranks]

  explicit ExchangePlan(int num_ranks = 0);
  /// The way back: what was received is sent, what was sent is received, at the same offsets.
  void reverse();
  std::int64_t rows_received() const;
};

/// An exchange under way. Owns its requests and its plan until completion, because MPI forbids
/// touching or freeing them earlier.
class [[nodiscard]] PendingExchange {
 public:
  PendingExchange() = default;
  PendingExchange(PendingExchange&& other) noexcept = default;
  PendingExchange& operator=(PendingExchange&& other) noexcept = default;

  /// Drives MPI's progress; true once all rows have been sent and received.
  bool done();
  /// For many exchanges at once: lets `poller` test this one. Where rows are staged, moves what can
  /// move instead.
  void poll_with(Poller& poller);
  /// done(), as the last test found it.
  bool found_done() const { return staging_ != nullptr ? staged_ : requests_.complete(); }
  /// The plan, for the way back. Only after done().
  ExchangePlan take_plan();
  Awaited awaited() const;

 private:
  friend class Exchange;
  ExchangePlan posted_;  // what MPI moves: the plan less the rows that went with the counters
  Requests requests_;
  std::vector<int> peers_;        // of each request; empty where the transport cannot tell
  std::size_t num_receives_ = 0;  // the first requests, where peers_ has them
  ExchangePlan plan_;
  Staging* staging_ = nullptr;  // of the exchange, where rows are staged
  bool staged_ = true;          // all rows are where they belong, as the staging found it
};

/// The exchanges of one chunk. Each chunk has its own duplicated communicator, because non-blocking
/// collectives must be started in the same order on all ranks of a communicator and chunks overtake
/// one another. After construction nothing allocates.
class Exchange {
 public:
  /// Collective. `row_bytes` is the size of one token's row; `counts_per_peer` how many counters
  /// each pair of ranks exchanges (experts of the peer, at most). A pair's rows go with its
  /// counters in one message where both fit into `first_message_bytes` (0: never; rows must be in
  /// host memory otherwise). Rows of staged transports lie in the memory of `device`, which
  /// outlives the exchange.
  Exchange(const Communicator& parent, TransportKind kind, std::size_t row_bytes,
           int counts_per_peer, std::size_t first_message_bytes = 0,
           compute::DeviceMemory* device = nullptr);
  ~Exchange();
  Exchange(const Exchange&) = delete;
  Exchange& operator=(const Exchange&) = delete;

  /// Counters for each peer, [ranks, counts_per_peer]; written before start_counts.
  std::span<std::int32_t> counts_to() { return counts_to_; }
  /// Counters from each peer, [ranks, counts_per_peer]; valid after counts_done().
  std::span<const std::int32_t> counts_from() const { return counts_from_; }
  /// `rows` are grouped by destination, own rank included; a rank gets as many as its counters add
  /// up to. They may be sent before this returns.
  void start_counts(const void* rows);
  bool counts_done() { return counts_requests_.test() && found_counts_done(); }
  /// For many exchanges at once: lets `poller` test the counters of this one.
  void poll_counts_with(Poller& poller) { poller.add(counts_requests_); }
  /// counts_done(), as the last test found it.
  bool found_counts_done();
  /// Requests that are under way at the same time, at most.
  std::size_t most_requests() const { return 2 * static_cast<std::size_t>(comm_.size()); }
  Awaited awaited_counts() const;
  /// After counts_done(): who gets which rows, and where they lie in what start_counts was given.
  void plan_rows(ExchangePlan& plan) const;

  /// Moves rows of `send` into `recv` as plan_rows has planned, those that came with the counters
  /// included. Both stay untouched until the returned exchange is done. One exchange of rows is
  /// under way at a time.
  PendingExchange dispatch(ExchangePlan&& plan, const void* send, void* recv);
  /// The same for any plan, such as the way back.
  PendingExchange start(ExchangePlan&& plan, const void* send, void* recv);
  /// Gives a finished exchange's request storage back for the next start().
  ExchangePlan finish(PendingExchange&& pending);

 private:
  void make_counts_requests();
  /// Before the rows of a first message.
  std::size_t counts_bytes() const {
    return static_cast<std::size_t>(counts_per_peer_) * sizeof(std::int32_t);
  }
  std::int64_t rows_in(std::span<const std::int32_t> counts, int peer) const;
  bool with_counts(std::int64_t rows) const { return rows > 0 && rows <= rows_with_counts_; }
  PendingExchange make_pending(ExchangePlan&& plan);
  PendingExchange post(PendingExchange&& pending, const void* send, void* recv);
  void start_staged(PendingExchange& pending, const void* send, void* recv);
  void start_ialltoallv(PendingExchange& pending, const void* send, void* recv);
  void start_pairwise(PendingExchange& pending, const void* send, void* recv);

  Communicator comm_;
  TransportKind kind_;
  std::size_t row_bytes_;
  int counts_per_peer_;
  MPI_Datatype row_type_ = MPI_DATATYPE_NULL;
  std::int64_t rows_with_counts_ = 0;  // most rows of a first message
  std::size_t message_bytes_;          // of the largest first message
  Requests counts_requests_;           // receives (persistent), then sends
  std::vector<std::int32_t> counts_to_, counts_from_;
  std::vector<std::byte> messages_to_, messages_from_;  // [ranks, message_bytes_]
  ExchangePlan spare_plan_;
  Requests spare_requests_;
  std::vector<int> spare_peers_;
  ExchangePlan staged_plan_;
  std::unique_ptr<Staging> staging_;
};

}  // namespace atl::comm
