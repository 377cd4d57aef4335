#pragma once
// Bytes from ranks to ranks, beside all other messages: over a communicator of their own.

#include <cstddef>
#include <span>

#include "comm/communicator.hpp"
#include "comm/poller.hpp"

namespace atl::comm {

class ByteMoves {
 public:
  /// Collective.
  explicit ByteMoves(const Communicator& comm) : comm_(comm.duplicate()) {}

  /// The memory stays as it is until done(). Two ranks post what goes between them in the same
  /// order; any size.
  void send(std::span<const std::byte> bytes, int to);
  void receive(std::span<std::byte> bytes, int from);
  /// Drives MPI's progress.
  bool done();
  /// Afterwards there is none under way.
  void finish();

 private:
  Communicator comm_;
  Requests requests_;
};

}  // namespace atl::comm
