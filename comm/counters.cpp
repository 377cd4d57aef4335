#include "comm/counters.hpp"

#include <algorithm>
#include <cstring>
#include <exception>
#include <utility>

namespace atl::comm {

namespace {
constexpr int counts_tag = 2;
}  // namespace

Peers all_others(const Communicator& comm) {
  Peers peers;
  for (int step = 1; step < comm.size(); ++step) {
    peers.to.push_back((comm.rank() + step) % comm.size());
    peers.from.push_back((comm.rank() + comm.size() - step) % comm.size());
  }
  return peers;
}

Counters::Counters(const Communicator& comm, Peers peers, int per_member, std::size_t row_bytes,
                   std::size_t first_message_bytes)
    : comm_(comm),
      peers_(std::move(peers)),
      per_member_(per_member),
      row_bytes_(row_bytes),
      to_(static_cast<std::size_t>(comm.size() * per_member)),
      from_(to_.size()) {
  if (first_message_bytes > header_bytes()) {
    most_rows_ = to_int((first_message_bytes - header_bytes()) / row_bytes, "rows of a message");
  }
  message_bytes_ = header_bytes() + static_cast<std::size_t>(most_rows_) * row_bytes;
  messages_to_.resize(peers_.to.size() * message_bytes_);
  messages_from_.resize(peers_.from.size() * message_bytes_);
  make_requests();
}

Counters::~Counters() {
  int finalized = 0;
  MPI_Finalized(&finalized);
  if (finalized != 0 || std::uncaught_exceptions() > 0) return;
  for (std::size_t i = 0; i < peers_.from.size(); ++i) MPI_Request_free(&requests_.handles()[i]);
}

void Counters::make_requests() {
  requests_.reserve(most_requests());
  for (std::size_t i = 0; i < peers_.from.size(); ++i) {
    check(MPI_Recv_init(&messages_from_[i * message_bytes_],
                        to_int(message_bytes_, "bytes of a message"), MPI_BYTE, peers_.from[i],
                        counts_tag, comm_.raw(), requests_.add()),
          "MPI_Recv_init");
  }
  for (std::size_t i = 0; i < peers_.to.size(); ++i) requests_.add();  // where sends will be
  requests_.none_posted();
}

void Counters::start(const RowMove& move, const void* rows) {
  const int rank = comm_.rank();
  std::copy_n(to(rank).begin(), per_member_, part_of(from_, rank).begin());
  if (most_requests() == 0) return;
  auto& requests = requests_.handles();
  const std::size_t receives = peers_.from.size();
  if (receives > 0) {
    check(MPI_Startall(to_int(receives, "receives"), requests.data()), "MPI_Startall");
  }
  for (std::size_t i = 0; i < peers_.to.size(); ++i) {
    const int peer = peers_.to[i];
    const auto p = static_cast<std::size_t>(peer);
    std::byte* message = &messages_to_[i * message_bytes_];
    std::size_t bytes = header_bytes();
    std::memcpy(message, to(peer).data(), bytes);
    if (goes_along(move.send_counts[p])) {
      const std::size_t row_bytes = static_cast<std::size_t>(move.send_counts[p]) * row_bytes_;
      std::memcpy(message + bytes,
                  static_cast<const std::byte*>(rows) +
                      static_cast<std::size_t>(move.send_offsets[p]) * row_bytes_,
                  row_bytes);
      bytes += row_bytes;
    }
    check(MPI_Isend(message, to_int(bytes, "bytes of a message"), MPI_BYTE, peer, counts_tag,
                    comm_.raw(), &requests[receives + i]),
          "MPI_Isend");
  }
  requests_.all_posted();
}

bool Counters::done() {
  if (!requests_.complete()) return false;
  for (std::size_t i = 0; i < peers_.from.size(); ++i) {
    std::memcpy(part_of(from_, peers_.from[i]).data(), &messages_from_[i * message_bytes_],
                header_bytes());
  }
  return true;
}

Awaited Counters::awaited() const {
  Awaited awaited;
  if (requests_.complete()) return awaited;
  auto request = requests_.handles().begin();
  for (const int peer : peers_.from) {
    if (!is_complete(*request++)) awaited.from.push_back(peer);
  }
  for (const int peer : peers_.to) {
    if (!is_complete(*request++)) awaited.to.push_back(peer);
  }
  return awaited;
}

void Counters::take_rows(RowMove& move, void* recv) const {
  for (const int peer : peers_.to) {
    const auto p = static_cast<std::size_t>(peer);
    if (goes_along(move.send_counts[p])) move.send_counts[p] = 0;
  }
  for (std::size_t i = 0; i < peers_.from.size(); ++i) {
    const auto p = static_cast<std::size_t>(peers_.from[i]);
    if (!goes_along(move.recv_counts[p])) continue;
    std::memcpy(
        static_cast<std::byte*>(recv) + static_cast<std::size_t>(move.recv_offsets[p]) * row_bytes_,
        &messages_from_[i * message_bytes_ + header_bytes()],
        static_cast<std::size_t>(move.recv_counts[p]) * row_bytes_);
    move.recv_counts[p] = 0;
  }
}

}  // namespace atl::comm
