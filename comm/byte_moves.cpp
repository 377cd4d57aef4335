#include "comm/byte_moves.hpp"

#include <algorithm>

namespace atl::comm {

namespace {

constexpr int tag = 0;

/// Calls post(offset, size) for pieces that MPI counts in `int`.
template <class Post>
void in_pieces(std::size_t bytes, const Post& post) {
  constexpr std::size_t most = std::size_t{1} << 28;
  for (std::size_t at = 0; at < bytes; at += most) post(at, std::min(most, bytes - at));
}

}  // namespace

void ByteMoves::send(std::span<const std::byte> bytes, int to) {
  in_pieces(bytes.size(), [&](std::size_t at, std::size_t size) {
    check(MPI_Isend(bytes.data() + at, to_int(size, "piece"), MPI_BYTE, to, tag, comm_.raw(),
                    requests_.add()),
          "MPI_Isend");
  });
}

void ByteMoves::receive(std::span<std::byte> bytes, int from) {
  in_pieces(bytes.size(), [&](std::size_t at, std::size_t size) {
    check(MPI_Irecv(bytes.data() + at, to_int(size, "piece"), MPI_BYTE, from, tag, comm_.raw(),
                    requests_.add()),
          "MPI_Irecv");
  });
}

bool ByteMoves::done() {
  if (!requests_.test()) return false;
  requests_.clear();
  return true;
}

void ByteMoves::finish() {
  while (!done()) {
  }
}

}  // namespace atl::comm
