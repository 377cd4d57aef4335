// ranks: 1 2 3 5 8
// Rows of device memory over every transport: a pretended device whose copies happen late, so that
// whoever does not wait for them sends or reads what is not there yet.

#include <gtest/gtest.h>

#include <cstring>
#include <deque>
#include <memory>
#include <vector>

#include "comm/lane.hpp"
#include "comm/mpi_library.hpp"
#include "comm/transports/choice.hpp"
#include "tests/mpi_main.hpp"

namespace atl::comm {
namespace {

constexpr std::size_t row_words = 24;
constexpr std::size_t row_bytes = row_words * sizeof(std::uint32_t);

/// Host memory that pretends to be a device's. A copy happens when it has been asked for a few
/// times.
class LateDevice final : public compute::DeviceMemory {
 public:
  Bytes allocate(std::size_t bytes) override { return memory(bytes); }
  Bytes allocate_host(std::size_t bytes) override {
    pinned_bytes += bytes;
    return memory(bytes);
  }
  Copy to_host(void* host, const void* device, std::size_t bytes) override {
    return add(host, device, bytes);
  }
  Copy to_device(void* device, const void* host, std::size_t bytes) override {
    return add(device, host, bytes);
  }
  bool copied(Copy copy) override {
    if (copy <= done_) return true;
    Late& next = waiting_.front();
    if (++next.asked < 3) return false;
    std::memcpy(next.to, next.from, next.bytes);
    waiting_.pop_front();
    ++done_;
    return copy <= done_;
  }

  std::size_t pinned_bytes = 0;

 private:
  struct Late {
    void* to;
    const void* from;
    std::size_t bytes;
    int asked = 0;
  };
  static Bytes memory(std::size_t bytes) {
    return {new std::byte[bytes], std::default_delete<std::byte[]>()};
  }
  Copy add(void* to, const void* from, std::size_t bytes) {
    waiting_.push_back({to, from, bytes});
    return done_ + waiting_.size();
  }

  std::deque<Late> waiting_;
  Copy done_ = 0;
};

std::uint32_t word(int from, int to, int row, std::size_t at) {
  return static_cast<std::uint32_t>((from * 64 + to) * 100003 + row) * 31U +
         static_cast<std::uint32_t>(at);
}

/// Who sends how many rows to whom; some shares are far larger than a piece.
int share(int round, int from, int to) {
  switch (round) {
    case 0:
      return (from * 7 + to * 3) % 5;
    case 1:
      return to != 0 ? 0 : from == 1 ? 200000 : 3000;  // more than fits the pinned memory
    case 2:
      return 0;
    default:
      return from % 2 == 0 ? 11000 : 1;
  }
}

struct Rows {
  explicit Rows(std::int64_t count)
      : words(static_cast<std::size_t>(count) * row_words, 0xdeadbeefU) {}
  std::vector<std::uint32_t> words;
};

void there_and_back(TransportKind kind, LateDevice& device) {
  const Communicator world = Communicator::world();
  const int size = world.size();
  const int rank = world.rank();
  LaneOptions options;
  options.transport = kind;
  options.row_bytes = row_bytes;
  options.device = &device;
  Lane lane(world, options);
  RowMove move(size);
  for (int round = 0; round < 4; ++round) {
    std::vector<std::uint32_t> out;
    for (int peer = 0, sent = 0, received = 0; peer < size; ++peer) {
      const auto p = static_cast<std::size_t>(peer);
      const int count = share(round, rank, peer);
      move.send_offsets[p] = sent;
      move.send_counts[p] = peer == rank ? 0 : count;
      move.recv_offsets[p] = received;
      move.recv_counts[p] = peer == rank ? 0 : share(round, peer, rank);
      sent += count;
      received += move.recv_counts[p];
      for (int row = 0; row < count; ++row) {
        for (std::size_t i = 0; i < row_words; ++i) out.push_back(word(rank, peer, row, i));
      }
    }
    Rows in(move.rows_received());
    lane.start(move, out.data(), in.words.data());
    while (!lane.test()) {
    }
    EXPECT_TRUE(lane.awaited().empty());
    for (int peer = 0; peer < size; ++peer) {
      const auto p = static_cast<std::size_t>(peer);
      for (int row = 0; row < move.recv_counts[p]; ++row) {
        const auto at = static_cast<std::size_t>(move.recv_offsets[p] + row) * row_words;
        for (std::size_t i = 0; i < row_words; ++i) {
          ASSERT_EQ(in.words[at + i], word(peer, rank, row, i)) << name_of(kind) << " " << round;
        }
      }
    }
    move.reverse();
    const auto own = static_cast<std::size_t>(move.recv_offsets[static_cast<std::size_t>(rank)]);
    const auto own_rows = static_cast<std::size_t>(share(round, rank, rank));
    std::vector<std::uint32_t> back(out.size());
    lane.start(move, in.words.data(), back.data());
    while (!lane.test()) {
    }
    for (std::size_t i = 0; i < out.size(); ++i) {
      const bool is_own = i / row_words >= own && i / row_words < own + own_rows;
      ASSERT_EQ(back[i], is_own ? 0 : out[i]) << name_of(kind) << ", round " << round;
    }
    move.reverse();
  }
}

TEST(Staging, RowsOfAnySizeArriveAndReturn) {
  LateDevice device;
  there_and_back(TransportKind::pairwise_staged, device);
  // Bounded, though rank 0 received 19 MB from rank 1 in one exchange.
  EXPECT_LE(device.pinned_bytes, std::size_t{40} << 20);
}

TEST(Staging, DevicePointersGoStraightToMpiWhereItTakesThem) {
  LateDevice device;  // its memory is the host's, so any MPI library takes it
  EXPECT_TRUE(canary(Communicator::world(), TransportKind::ialltoallv, &device));
  EXPECT_TRUE(canary(Communicator::world(), TransportKind::pairwise, &device));
  there_and_back(TransportKind::ialltoallv, device);
  there_and_back(TransportKind::pairwise, device);
}

TEST(Staging, PairwiseComesFirstForDeviceMemoryThatDoesNotGoOverUcx) {
  using enum TransportKind;
  EXPECT_EQ(transports_to_try(true, true), (std::vector{ialltoallv, pairwise, pairwise_staged}));
  EXPECT_EQ(transports_to_try(true, false), (std::vector{pairwise, ialltoallv, pairwise_staged}));
  EXPECT_EQ(transports_to_try(false, false), (std::vector{ialltoallv, pairwise, pairwise_staged}));
}

TEST(Staging, ChoiceIsByCanaryAndName) {
  const Communicator world = Communicator::world();
  LateDevice device;
  EXPECT_EQ(choose_transport(world, TransportKind::pairwise_staged, &device),
            TransportKind::pairwise_staged);
  EXPECT_THROW(choose_transport(world, TransportKind::pairwise_staged), Error);
  if (mpi_library::claims_device_memory()) {
    EXPECT_EQ(choose_transport(world, TransportKind::pairwise, &device), TransportKind::pairwise);
  } else {
    EXPECT_EQ(choose_transport(world, std::nullopt, &device), TransportKind::pairwise_staged);
    EXPECT_THROW(choose_transport(world, TransportKind::pairwise, &device), Error);
  }
}

/// A device that loses rows is found out.
class ForgetfulDevice final : public compute::DeviceMemory {
 public:
  Bytes allocate(std::size_t bytes) override {
    return {new std::byte[bytes](), std::default_delete<std::byte[]>()};
  }
  Bytes allocate_host(std::size_t bytes) override { return allocate(bytes); }
  Copy to_host(void*, const void*, std::size_t) override { return 1; }
  Copy to_device(void*, const void*, std::size_t) override { return 1; }
  bool copied(Copy) override { return true; }
};

TEST(Staging, TheCanaryChecksContents) {
  const Communicator world = Communicator::world();
  ForgetfulDevice device;
  if (world.size() == 1) return;  // nothing travels
  EXPECT_FALSE(canary(world, TransportKind::pairwise_staged, &device));
  EXPECT_THROW(choose_transport(world, TransportKind::pairwise_staged, &device), Error);
}

}  // namespace
}  // namespace atl::comm
