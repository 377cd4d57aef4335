// One MPI_Isend and one MPI_Irecv for each member that has rows.

#include "comm/transports/transport.hpp"

namespace atl::comm {

namespace {

constexpr int rows_tag = 1;

class Pairwise final : public Transport {
 public:
  explicit Pairwise(const TransportSetup& setup) : setup_(setup) {
    const auto most = 2 * static_cast<std::size_t>(setup.comm->size());
    requests_.reserve(most);
    peers_.reserve(most);
  }

  void start(const RowMove& move, const void* send, void* recv) override {
    requests_.clear();
    peers_.clear();
    const int size = setup_.comm->size();
    const int rank = setup_.comm->rank();
    const auto offset = [this](int rows) {
      return static_cast<std::size_t>(rows) * setup_.row_bytes;
    };
    // Peers in a rotated order, so that not all ranks send to the same one first.
    for (int step = 1; step < size; ++step) {
      const int peer = (rank + size - step) % size;
      const auto p = static_cast<std::size_t>(peer);
      if (move.recv_counts[p] == 0) continue;
      peers_.push_back(peer);
      check(MPI_Irecv(static_cast<std::byte*>(recv) + offset(move.recv_offsets[p]),
                      move.recv_counts[p], setup_.row_type, peer, rows_tag, setup_.comm->raw(),
                      requests_.add()),
            "MPI_Irecv");
    }
    num_receives_ = peers_.size();
    for (int step = 1; step < size; ++step) {
      const int peer = (rank + step) % size;
      const auto p = static_cast<std::size_t>(peer);
      if (move.send_counts[p] == 0) continue;
      peers_.push_back(peer);
      check(MPI_Isend(static_cast<const std::byte*>(send) + offset(move.send_offsets[p]),
                      move.send_counts[p], setup_.row_type, peer, rows_tag, setup_.comm->raw(),
                      requests_.add()),
            "MPI_Isend");
    }
  }

  void poll_with(Poller& poller) override { poller.add(requests_); }
  bool done() const override { return requests_.complete(); }

  Awaited awaited() const override {
    Awaited awaited;
    if (done()) return awaited;
    for (std::size_t i = 0; i < peers_.size(); ++i) {
      if (is_complete(requests_.handles()[i])) continue;
      (i < num_receives_ ? awaited.from : awaited.to).push_back(peers_[i]);
    }
    return awaited;
  }

 private:
  TransportSetup setup_;
  Requests requests_;       // receives, then sends
  std::vector<int> peers_;  // of each request
  std::size_t num_receives_ = 0;
};

}  // namespace

std::unique_ptr<Transport> make_pairwise(const TransportSetup& setup) {
  return std::make_unique<Pairwise>(setup);
}

}  // namespace atl::comm
