#include "comm/counters.hpp"

#include <algorithm>
#include <cstring>
#include <exception>

namespace atl::comm {

namespace {
constexpr int counts_tag = 2;
}  // namespace

Counters::Counters(const Communicator& comm, int per_member, std::size_t row_bytes,
                   std::size_t first_message_bytes)
    : comm_(comm),
      per_member_(per_member),
      row_bytes_(row_bytes),
      to_(static_cast<std::size_t>(comm.size() * per_member)),
      from_(to_.size()) {
  if (first_message_bytes > header_bytes()) {
    most_rows_ = to_int((first_message_bytes - header_bytes()) / row_bytes, "rows of a message");
  }
  message_bytes_ = header_bytes() + static_cast<std::size_t>(most_rows_) * row_bytes;
  messages_to_.resize(static_cast<std::size_t>(comm.size()) * message_bytes_);
  messages_from_.resize(messages_to_.size());
  make_requests();
}

Counters::~Counters() {
  int finalized = 0;
  MPI_Finalized(&finalized);
  if (finalized != 0 || std::uncaught_exceptions() > 0) return;
  const auto receives = static_cast<std::size_t>(comm_.size() - 1);
  for (std::size_t i = 0; i < receives; ++i) MPI_Request_free(&requests_.handles()[i]);
}

void Counters::make_requests() {
  const int size = comm_.size();
  requests_.reserve(most_requests());
  for (int step = 1; step < size; ++step) {
    const int peer = (comm_.rank() + size - step) % size;
    check(MPI_Recv_init(&messages_from_[static_cast<std::size_t>(peer) * message_bytes_],
                        to_int(message_bytes_, "bytes of a message"), MPI_BYTE, peer, counts_tag,
                        comm_.raw(), requests_.add()),
          "MPI_Recv_init");
  }
  for (int step = 1; step < size; ++step) requests_.add();  // where sends will be
  requests_.none_posted();
}

void Counters::start(const RowMove& move, const void* rows) {
  const int rank = comm_.rank();
  std::copy_n(to(rank).begin(), per_member_, part_of(from_, rank).begin());
  const int receives = comm_.size() - 1;
  if (receives == 0) return;
  auto& requests = requests_.handles();
  check(MPI_Startall(receives, requests.data()), "MPI_Startall");
  for (int peer = 0, send = receives; peer < comm_.size(); ++peer) {
    if (peer == rank) continue;
    const auto p = static_cast<std::size_t>(peer);
    std::byte* message = &messages_to_[p * message_bytes_];
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
                    comm_.raw(), &requests[static_cast<std::size_t>(send++)]),
          "MPI_Isend");
  }
  requests_.all_posted();
}

bool Counters::done() {
  if (!requests_.complete()) return false;
  for (int peer = 0; peer < comm_.size(); ++peer) {
    if (peer == comm_.rank()) continue;
    std::memcpy(part_of(from_, peer).data(),
                &messages_from_[static_cast<std::size_t>(peer) * message_bytes_], header_bytes());
  }
  return true;
}

Awaited Counters::awaited() const {
  Awaited awaited;
  if (requests_.complete()) return awaited;
  auto request = requests_.handles().begin();
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

void Counters::take_rows(RowMove& move, void* recv) const {
  for (std::size_t p = 0; p < move.send_counts.size(); ++p) {
    if (goes_along(move.send_counts[p])) move.send_counts[p] = 0;
    if (!goes_along(move.recv_counts[p])) continue;
    std::memcpy(
        static_cast<std::byte*>(recv) + static_cast<std::size_t>(move.recv_offsets[p]) * row_bytes_,
        &messages_from_[p * message_bytes_ + header_bytes()],
        static_cast<std::size_t>(move.recv_counts[p]) * row_bytes_);
    move.recv_counts[p] = 0;
  }
}

}  // namespace atl::comm
