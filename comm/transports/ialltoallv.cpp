// All rows of a move in one MPI_Ialltoallv.

#include <vector>

#include "comm/transports/transport.hpp"

namespace atl::comm {

namespace {

class Ialltoallv final : public Transport {
 public:
  explicit Ialltoallv(const TransportSetup& setup) : setup_(setup) {
    requests_.reserve(1);
    shifted_.reserve(static_cast<std::size_t>(setup.comm->size()));
  }

  void start(const RowMove& move, const void* send, void* recv) override {
    requests_.clear();
    const int* send_offsets = move.send_offsets.data();
    if (send == recv && send != nullptr) {
      // Rows that others get lie beside those that they send. Open MPI would take equal pointers
      // for MPI_IN_PLACE; so this one names the row before the buffer, and counts from there.
      shifted_.assign(move.send_offsets.begin(), move.send_offsets.end());
      for (int& offset : shifted_) ++offset;
      send_offsets = shifted_.data();
      send = static_cast<const std::byte*>(send) - setup_.row_bytes;
    }
    check(MPI_Ialltoallv(send, move.send_counts.data(), send_offsets, setup_.row_type, recv,
                         move.recv_counts.data(), move.recv_offsets.data(), setup_.row_type,
                         setup_.comm->raw(), requests_.add()),
          "MPI_Ialltoallv");
  }
  void poll_with(Poller& poller) override { poller.add(requests_); }
  bool done() const override { return requests_.complete(); }
  Awaited awaited() const override { return {}; }  // the library does not tell

 private:
  TransportSetup setup_;
  Requests requests_;
  std::vector<int> shifted_;  // send offsets, where both buffers are one
};

}  // namespace

std::unique_ptr<Transport> make_ialltoallv(const TransportSetup& setup) {
  return std::make_unique<Ialltoallv>(setup);
}

}  // namespace atl::comm
