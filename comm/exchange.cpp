#include "comm/exchange.hpp"

#include <algorithm>
#include <cstring>
#include <exception>
#include <numeric>
#include <utility>

namespace atl::comm {

namespace {
constexpr int rows_tag = 1;
constexpr int counts_tag = 2;
}  // namespace

std::string_view name_of(TransportKind kind) {
  switch (kind) {
    case TransportKind::ialltoallv:
      return "ialltoallv";
    case TransportKind::pairwise:
      return "pairwise";
    case TransportKind::pairwise_staged:
      return "pairwise-staged";
  }
  return "?";
}

ExchangePlan::ExchangePlan(int num_ranks)
    : send_counts(static_cast<std::size_t>(num_ranks)),
      send_offsets(static_cast<std::size_t>(num_ranks)),
      recv_counts(static_cast<std::size_t>(num_ranks)),
      recv_offsets(static_cast<std::size_t>(num_ranks)) {}

void ExchangePlan::reverse() {
  std::swap(send_counts, recv_counts);
  std::swap(send_offsets, recv_offsets);
}

std::int64_t ExchangePlan::rows_received() const {
  return std::accumulate(recv_counts.begin(), recv_counts.end(), std::int64_t{0});
}

bool PendingExchange::done() {
  if (found_done()) return true;
  if (staging_ == nullptr) return requests_.test();
  staged_ = staging_->advance();
  return staged_;
}

void PendingExchange::poll_with(Poller& poller) {
  if (staging_ == nullptr) {
    poller.add(requests_);
  } else if (!staged_) {
    staged_ = staging_->advance();
  }
}

ExchangePlan PendingExchange::take_plan() {
  return std::move(plan_);
}

Awaited PendingExchange::awaited() const {
  Awaited awaited;
  if (found_done()) return awaited;
  if (staging_ != nullptr) return staging_->awaited();
  for (std::size_t i = 0; i < peers_.size(); ++i) {
    if (is_complete(requests_.handles()[i])) continue;
    (i < num_receives_ ? awaited.from : awaited.to).push_back(peers_[i]);
  }
  return awaited;
}

Exchange::Exchange(const Communicator& parent, TransportKind kind, std::size_t row_bytes,
                   int counts_per_peer, std::size_t first_message_bytes,
                   compute::DeviceMemory* device)
    : comm_(parent.duplicate()),
      kind_(kind),
      row_bytes_(row_bytes),
      counts_per_peer_(counts_per_peer),
      counts_to_(static_cast<std::size_t>(parent.size() * counts_per_peer)),
      counts_from_(counts_to_.size()),
      spare_plan_(parent.size()) {
  // One MPI element is one row, so that counts and offsets are in tokens and stay far below 2^31.
  check(MPI_Type_contiguous(to_int(row_bytes, "bytes of a row"), MPI_BYTE, &row_type_),
        "MPI_Type_contiguous");
  check(MPI_Type_commit(&row_type_), "MPI_Type_commit");
  const std::size_t header = counts_bytes();
  if (first_message_bytes > header) {
    rows_with_counts_ = static_cast<std::int64_t>((first_message_bytes - header) / row_bytes);
  }
  message_bytes_ = header + static_cast<std::size_t>(rows_with_counts_) * row_bytes;
  messages_to_.resize(static_cast<std::size_t>(comm_.size()) * message_bytes_);
  messages_from_.resize(messages_to_.size());
  make_counts_requests();
  spare_requests_.reserve(most_requests());
  spare_peers_.reserve(most_requests());
  if (!is_staged(kind)) return;
  require(device != nullptr, "internal: staging without device memory");
  StagingSetup setup;
  setup.comm = &comm_;
  setup.device = device;
  setup.row_bytes = row_bytes;
  setup.row_type = row_type_;
  staging_ = make_pairwise_staging(setup);
}

Exchange::~Exchange() {
  int finalized = 0;
  MPI_Finalized(&finalized);
  if (finalized != 0 || std::uncaught_exceptions() > 0) return;
  const auto receives = static_cast<std::size_t>(comm_.size() - 1);
  for (std::size_t i = 0; i < receives; ++i) MPI_Request_free(&counts_requests_.handles()[i]);
  MPI_Type_free(&row_type_);
}

/// Every pair of ranks has counters: one message each, all at once. A library's MPI_Ialltoall takes
/// several rounds for small messages, and in each round every rank must get to run, which is slow
/// where ranks share cores.
void Exchange::make_counts_requests() {
  const int size = comm_.size();
  counts_requests_.reserve(most_requests());
  for (int step = 1; step < size; ++step) {
    const int peer = (comm_.rank() + size - step) % size;
    check(MPI_Recv_init(&messages_from_[static_cast<std::size_t>(peer) * message_bytes_],
                        to_int(message_bytes_, "bytes of a message"), MPI_BYTE, peer, counts_tag,
                        comm_.raw(), counts_requests_.add()),
          "MPI_Recv_init");
  }
  for (int step = 1; step < size; ++step) counts_requests_.add();  // where sends will be
  counts_requests_.none_posted();
}

std::int64_t Exchange::rows_in(std::span<const std::int32_t> counts, int peer) const {
  const auto first = counts.begin() + static_cast<std::ptrdiff_t>(peer * counts_per_peer_);
  return std::accumulate(first, first + counts_per_peer_, std::int64_t{0});
}

void Exchange::start_counts(const void* rows) {
  const int size = comm_.size();
  const int rank = comm_.rank();
  const auto own = static_cast<std::ptrdiff_t>(rank * counts_per_peer_);
  std::copy_n(counts_to_.begin() + own, counts_per_peer_, counts_from_.begin() + own);
  const int receives = size - 1;
  if (receives == 0) return;
  auto& requests = counts_requests_.handles();
  check(MPI_Startall(receives, requests.data()), "MPI_Startall");
  const auto* next_rows = static_cast<const std::byte*>(rows);
  for (int peer = 0, send = receives; peer < size; ++peer) {
    const std::int64_t count = rows_in(counts_to_, peer);
    const std::byte* peer_rows = next_rows;
    next_rows += static_cast<std::size_t>(count) * row_bytes_;
    if (peer == rank) continue;
    std::byte* message = &messages_to_[static_cast<std::size_t>(peer) * message_bytes_];
    std::size_t bytes = counts_bytes();
    std::memcpy(message, &counts_to_[static_cast<std::size_t>(peer * counts_per_peer_)],
                counts_bytes());
    if (with_counts(count)) {
      std::memcpy(message + bytes, peer_rows, static_cast<std::size_t>(count) * row_bytes_);
      bytes += static_cast<std::size_t>(count) * row_bytes_;
    }
    check(MPI_Isend(message, to_int(bytes, "bytes of a message"), MPI_BYTE, peer, counts_tag,
                    comm_.raw(), &requests[static_cast<std::size_t>(send++)]),
          "MPI_Isend");
  }
  counts_requests_.all_posted();
}

bool Exchange::found_counts_done() {
  if (!counts_requests_.complete()) return false;
  for (int peer = 0; peer < comm_.size(); ++peer) {
    if (peer == comm_.rank()) continue;
    std::memcpy(&counts_from_[static_cast<std::size_t>(peer * counts_per_peer_)],
                &messages_from_[static_cast<std::size_t>(peer) * message_bytes_], counts_bytes());
  }
  return true;
}

Awaited Exchange::awaited_counts() const {
  Awaited awaited;
  if (counts_requests_.complete()) return awaited;
  auto request = counts_requests_.handles().begin();
  for (int step = 1; step < comm_.size(); ++step, ++request) {
    const int peer = (comm_.rank() + comm_.size() - step) % comm_.size();
    if (!is_complete(*request)) awaited.from.push_back(peer);
  }
  for (int peer = 0; peer < comm_.size(); ++peer) {
    if (peer == comm_.rank()) continue;
    if (!is_complete(*request++)) awaited.to.push_back(peer);
  }
  return awaited;
}

void Exchange::plan_rows(ExchangePlan& plan) const {
  std::int64_t sent = 0;
  std::int64_t received = 0;
  for (int peer = 0; peer < comm_.size(); ++peer) {
    const auto p = static_cast<std::size_t>(peer);
    const bool own = peer == comm_.rank();
    const std::int64_t rows_to = rows_in(counts_to_, peer);
    const std::int64_t rows_from = own ? 0 : rows_in(counts_from_, peer);
    plan.send_offsets[p] = to_int(static_cast<std::size_t>(sent), "rows sent");
    plan.recv_offsets[p] = to_int(static_cast<std::size_t>(received), "rows received");
    plan.send_counts[p] = own ? 0 : to_int(static_cast<std::size_t>(rows_to), "rows sent");
    plan.recv_counts[p] = to_int(static_cast<std::size_t>(rows_from), "rows received");
    sent += rows_to;  // the own rows keep their place among the packed ones
    received += rows_from;
  }
}

PendingExchange Exchange::make_pending(ExchangePlan&& plan) {
  PendingExchange pending;
  pending.requests_ = std::move(spare_requests_);
  pending.peers_ = std::move(spare_peers_);
  pending.posted_ = std::move(spare_plan_);
  pending.requests_.clear();
  pending.peers_.clear();
  pending.plan_ = std::move(plan);
  pending.posted_ = pending.plan_;  // of equal size: copies into the storage that is there
  return pending;
}

PendingExchange Exchange::dispatch(ExchangePlan&& plan, const void* send, void* recv) {
  PendingExchange pending = make_pending(std::move(plan));
  ExchangePlan& posted = pending.posted_;
  for (std::size_t p = 0; p < posted.send_counts.size(); ++p) {
    if (with_counts(posted.send_counts[p])) posted.send_counts[p] = 0;
    if (!with_counts(posted.recv_counts[p])) continue;
    std::memcpy(static_cast<std::byte*>(recv) +
                    static_cast<std::size_t>(posted.recv_offsets[p]) * row_bytes_,
                &messages_from_[p * message_bytes_ + counts_bytes()],
                static_cast<std::size_t>(posted.recv_counts[p]) * row_bytes_);
    posted.recv_counts[p] = 0;
  }
  return post(std::move(pending), send, recv);
}

PendingExchange Exchange::start(ExchangePlan&& plan, const void* send, void* recv) {
  return post(make_pending(std::move(plan)), send, recv);
}

PendingExchange Exchange::post(PendingExchange&& pending, const void* send, void* recv) {
  if (staging_ != nullptr) {
    start_staged(pending, send, recv);
  } else if (kind_ == TransportKind::ialltoallv) {
    start_ialltoallv(pending, send, recv);
  } else {
    start_pairwise(pending, send, recv);
  }
  return std::move(pending);
}

ExchangePlan Exchange::finish(PendingExchange&& pending) {
  spare_requests_ = std::move(pending.requests_);
  spare_peers_ = std::move(pending.peers_);
  spare_plan_ = std::move(pending.posted_);
  return pending.take_plan();
}

void Exchange::start_staged(PendingExchange& pending, const void* send, void* recv) {
  const ExchangePlan& plan = staged_plan_ = pending.posted_;
  pending.staging_ = staging_.get();
  pending.staged_ = false;
  staging_->start(plan, send, recv);
}

void Exchange::start_ialltoallv(PendingExchange& pending, const void* send, void* recv) {
  const ExchangePlan& plan = pending.posted_;
  check(MPI_Ialltoallv(send, plan.send_counts.data(), plan.send_offsets.data(), row_type_, recv,
                       plan.recv_counts.data(), plan.recv_offsets.data(), row_type_, comm_.raw(),
                       pending.requests_.add()),
        "MPI_Ialltoallv");
}

void Exchange::start_pairwise(PendingExchange& pending, const void* send, void* recv) {
  const ExchangePlan& plan = pending.posted_;
  const int size = comm_.size();
  const int rank = comm_.rank();
  // Peers in a rotated order, so that not all ranks send to the same one first.
  for (int step = 1; step < size; ++step) {
    const int peer = (rank + size - step) % size;
    const auto p = static_cast<std::size_t>(peer);
    if (plan.recv_counts[p] == 0) continue;
    pending.peers_.push_back(peer);
    auto* to =
        static_cast<std::byte*>(recv) + static_cast<std::size_t>(plan.recv_offsets[p]) * row_bytes_;
    check(MPI_Irecv(to, plan.recv_counts[p], row_type_, peer, rows_tag, comm_.raw(),
                    pending.requests_.add()),
          "MPI_Irecv");
  }
  pending.num_receives_ = pending.peers_.size();
  for (int step = 1; step < size; ++step) {
    const int peer = (rank + step) % size;
    const auto p = static_cast<std::size_t>(peer);
    if (plan.send_counts[p] == 0) continue;
    pending.peers_.push_back(peer);
    const auto* from = static_cast<const std::byte*>(send) +
                       static_cast<std::size_t>(plan.send_offsets[p]) * row_bytes_;
    check(MPI_Isend(from, plan.send_counts[p], row_type_, peer, rows_tag, comm_.raw(),
                    pending.requests_.add()),
          "MPI_Isend");
  }
}

}  // namespace atl::comm
