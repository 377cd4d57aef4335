// All rows of a move in one MPI_Ialltoallv.

#include "comm/transports/transport.hpp"

namespace atl::comm {

namespace {

class Ialltoallv final : public Transport {
 public:
  explicit Ialltoallv(const TransportSetup& setup) : setup_(setup) { requests_.reserve(1); }

  void start(const RowMove& move, const void* send, void* recv) override {
    requests_.clear();
    check(MPI_Ialltoallv(send, move.send_counts.data(), move.send_offsets.data(), setup_.row_type,
                         recv, move.recv_counts.data(), move.recv_offsets.data(), setup_.row_type,
                         setup_.comm->raw(), requests_.add()),
          "MPI_Ialltoallv");
  }
  void poll_with(Poller& poller) override { poller.add(requests_); }
  bool done() const override { return requests_.complete(); }
  Awaited awaited() const override { return {}; }  // the library does not tell

 private:
  TransportSetup setup_;
  Requests requests_;
};

}  // namespace

std::unique_ptr<Transport> make_ialltoallv(const TransportSetup& setup) {
  return std::make_unique<Ialltoallv>(setup);
}

}  // namespace atl::comm
