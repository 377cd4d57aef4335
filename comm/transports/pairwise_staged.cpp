// Rows of device memory that travel through pinned host memory, in pieces: while one piece is with
// MPI, the next is copied from the device and the last one to it. The pinned memory is bounded,
// whatever the move.

#include <algorithm>
#include <deque>

#include "comm/transports/transport.hpp"
#include "compute/error.hpp"

namespace atl::comm {

namespace {

using compute::DeviceMemory;

constexpr int staged_tag = 3;
constexpr std::size_t pinned_bytes = std::size_t{16}
                                     << 20;  // in each direction, at most about this

std::byte* row_of(void* base, std::int64_t row, std::size_t row_bytes) {
  return static_cast<std::byte*>(base) + static_cast<std::size_t>(row) * row_bytes;
}

/// Pinned memory handed out and given back in the same order.
class PieceRing {
 public:
  PieceRing(DeviceMemory& device, std::size_t bytes)
      : memory_(device.allocate_host(bytes)), bytes_(bytes) {}

  std::size_t bytes() const { return bytes_; }
  /// Memory for a piece, or null while there is not enough in one place.
  std::byte* take(std::size_t bytes) {
    if (used_ == 0) head_ = tail_ = 0;
    const std::size_t to_end = bytes_ - head_;
    const bool wraps = head_ >= tail_ && bytes > to_end;
    const std::size_t skipped = wraps ? to_end : 0;
    if (used_ + skipped + bytes > bytes_) return nullptr;
    if (wraps) head_ = 0;
    std::byte* const at = memory_.get() + head_;
    head_ += bytes;
    used_ += skipped + bytes;
    sizes_.push_back(skipped + bytes);
    return at;
  }
  /// Gives the oldest piece back.
  void give_back() {
    used_ -= sizes_.front();
    tail_ = (tail_ + sizes_.front()) % bytes_;
    sizes_.pop_front();
  }

 private:
  DeviceMemory::Bytes memory_;
  std::size_t bytes_;
  std::size_t head_ = 0;  // next byte to hand out
  std::size_t tail_ = 0;  // first byte in use
  std::size_t used_ = 0;
  std::deque<std::size_t> sizes_;
};

class PairwiseStaged final : public Transport {
 public:
  explicit PairwiseStaged(const TransportSetup& setup)
      : setup_(setup),
        piece_rows_(static_cast<int>(std::max<std::size_t>(1, piece_bytes / setup.row_bytes))),
        sending_(*setup.device, ring_bytes()),
        receiving_(*setup.device, ring_bytes()) {}

  void start(const RowMove& move, const void* send, void* recv) override {
    move_ = &move;
    send_ = const_cast<void*>(send);
    recv_ = recv;
    next_send_ = next_receive_ = {};
    skip_empty(next_send_, move.send_counts, +1);
    skip_empty(next_receive_, move.recv_counts, -1);
    advance();
  }

  void poll_with(Poller&) override {
    if (!done_) advance();
  }
  bool done() const override { return done_; }

  Awaited awaited() const override {
    if (done_) return {};
    return {peers_of(receives_, next_receive_, move_->recv_counts, -1),
            peers_of(sends_, next_send_, move_->send_counts, +1)};
  }

 private:
  void advance() {
    receive();
    post_receives();  // before the sends: a message finds its place
    post_copies();
    send();
    done_ = sends_.empty() && receives_.empty() && at_end(next_send_) && at_end(next_receive_);
  }

  static constexpr std::size_t piece_bytes = std::size_t{1} << 20;
  static constexpr std::size_t most_pieces = 64;  // under way in each direction

  /// A place in the order of pieces: peers at a rising distance, each with its rows. All ranks go
  /// through the distances alike, so the nearest open piece of all finds its partner posted, and
  /// bounded memory cannot deadlock.
  struct Cursor {
    int step = 1;
    int row = 0;
  };
  struct Piece {
    std::byte* at = nullptr;
    int peer = -1;
    int rows = 0;
    std::int64_t first_row = 0;
    MPI_Request request = MPI_REQUEST_NULL;
    DeviceMemory::Copy copy = 0;
    bool with_device = false;  // the copy is under way
    bool done = false;
  };

  std::size_t ring_bytes() const {
    return std::max(pinned_bytes, static_cast<std::size_t>(piece_rows_) * setup_.row_bytes);
  }
  int peer_of(int step, int direction) const {
    const int size = setup_.comm->size();
    return (setup_.comm->rank() + (direction > 0 ? step : size - step)) % size;
  }
  bool at_end(const Cursor& cursor) const { return cursor.step >= setup_.comm->size(); }

  void skip_empty(Cursor& cursor, const std::vector<int>& counts, int direction) const {
    while (!at_end(cursor) &&
           cursor.row >= counts[static_cast<std::size_t>(peer_of(cursor.step, direction))]) {
      ++cursor.step;
      cursor.row = 0;
    }
  }

  /// Who has open pieces, under way or still to be posted.
  std::vector<int> peers_of(const std::deque<Piece>& under_way, const Cursor& next,
                            const std::vector<int>& counts, int direction) const {
    std::vector<int> peers;
    const auto add = [&peers](int peer) {
      if (std::find(peers.begin(), peers.end(), peer) == peers.end()) peers.push_back(peer);
    };
    for (const Piece& piece : under_way) {
      if (piece.request != MPI_REQUEST_NULL) add(piece.peer);
    }
    for (int step = next.step; step < setup_.comm->size(); ++step) {
      const int peer = peer_of(step, direction);
      if (counts[static_cast<std::size_t>(peer)] > 0) add(peer);
    }
    return peers;
  }

  /// The next piece with its memory; false when all are posted or memory is short.
  bool next_piece(Cursor& cursor, const std::vector<int>& counts, const std::vector<int>& offsets,
                  int direction, PieceRing& ring, const std::deque<Piece>& under_way,
                  Piece& piece) const {
    if (at_end(cursor) || under_way.size() >= most_pieces) return false;
    piece = {};
    piece.peer = peer_of(cursor.step, direction);
    const auto p = static_cast<std::size_t>(piece.peer);
    piece.rows = std::min(piece_rows_, counts[p] - cursor.row);
    piece.first_row = std::int64_t{offsets[p]} + cursor.row;
    piece.at = ring.take(static_cast<std::size_t>(piece.rows) * setup_.row_bytes);
    if (piece.at == nullptr) return false;
    cursor.row += piece.rows;
    skip_empty(cursor, counts, direction);
    return true;
  }

  void post_copies() {
    Piece piece;
    while (next_piece(next_send_, move_->send_counts, move_->send_offsets, +1, sending_, sends_,
                      piece)) {
      piece.copy =
          setup_.device->to_host(piece.at, row_of(send_, piece.first_row, setup_.row_bytes),
                                 static_cast<std::size_t>(piece.rows) * setup_.row_bytes);
      piece.with_device = true;
      sends_.push_back(piece);
    }
  }

  void send() {
    for (Piece& piece : sends_) {
      if (piece.with_device) {
        if (!setup_.device->copied(piece.copy)) break;  // messages to a peer keep their order
        piece.with_device = false;
        check(MPI_Isend(piece.at, piece.rows, setup_.row_type, piece.peer, staged_tag,
                        setup_.comm->raw(), &piece.request),
              "MPI_Isend");
      }
      if (!piece.done) piece.done = test(piece.request);
    }
    while (!sends_.empty() && sends_.front().done) {
      sends_.pop_front();
      sending_.give_back();
    }
  }

  void post_receives() {
    Piece piece;
    while (next_piece(next_receive_, move_->recv_counts, move_->recv_offsets, -1, receiving_,
                      receives_, piece)) {
      receives_.push_back(piece);
      check(MPI_Irecv(piece.at, piece.rows, setup_.row_type, piece.peer, staged_tag,
                      setup_.comm->raw(), &receives_.back().request),
            "MPI_Irecv");
    }
  }

  void receive() {
    for (Piece& piece : receives_) {
      if (!piece.with_device && !piece.done) {
        if (!test(piece.request)) continue;
        piece.copy =
            setup_.device->to_device(row_of(recv_, piece.first_row, setup_.row_bytes), piece.at,
                                     static_cast<std::size_t>(piece.rows) * setup_.row_bytes);
        piece.with_device = true;
      }
      if (piece.with_device && setup_.device->copied(piece.copy)) {
        piece.with_device = false;
        piece.done = true;
      }
    }
    while (!receives_.empty() && receives_.front().done) {
      receives_.pop_front();
      receiving_.give_back();
    }
  }

  static bool test(MPI_Request& request) {
    int flag = 0;
    check(MPI_Test(&request, &flag, MPI_STATUS_IGNORE), "MPI_Test");
    return flag != 0;
  }

  TransportSetup setup_;
  int piece_rows_;
  PieceRing sending_, receiving_;
  const RowMove* move_ = nullptr;
  bool done_ = true;
  void* send_ = nullptr;
  void* recv_ = nullptr;
  Cursor next_send_, next_receive_;
  std::deque<Piece> sends_, receives_;  // oldest first
};

}  // namespace

std::unique_ptr<Transport> make_pairwise_staged(const TransportSetup& setup) {
  require(setup.device != nullptr, "internal: staging without device memory");
  return std::make_unique<PairwiseStaged>(setup);
}

}  // namespace atl::comm
