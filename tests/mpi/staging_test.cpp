// ranks: 1 2 3 5 8
// Rows of device memory over every transport: a pretended device whose copies happen late, so that
// whoever does not wait for them sends or reads what is not there yet.

#include <gtest/gtest.h>

#include <cstring>
#include <deque>
#include <memory>
#include <vector>

#include "comm/transport.hpp"
#include "mpi_main.hpp"

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
  Exchange exchange(world, kind, row_bytes, 1, 0, &device);
  for (int round = 0; round < 4; ++round) {
    std::vector<std::uint32_t> out;
    for (int peer = 0; peer < size; ++peer) {
      const int count = share(round, rank, peer);
      exchange.counts_to()[static_cast<std::size_t>(peer)] = count;
      for (int row = 0; row < count; ++row) {
        for (std::size_t i = 0; i < row_words; ++i) out.push_back(word(rank, peer, row, i));
      }
    }
    exchange.start_counts(out.data());
    while (!exchange.counts_done()) {
    }
    ExchangePlan plan(size);
    exchange.plan_rows(plan);
    Rows in(plan.rows_received());
    auto pending = exchange.dispatch(std::move(plan), out.data(), in.words.data());
    while (!pending.done()) {
    }
    EXPECT_TRUE(pending.awaited().empty());
    plan = exchange.finish(std::move(pending));
    for (int peer = 0; peer < size; ++peer) {
      const auto p = static_cast<std::size_t>(peer);
      ASSERT_EQ(plan.recv_counts[p], peer == rank ? 0 : share(round, peer, rank));
      for (int row = 0; row < plan.recv_counts[p]; ++row) {
        const auto at = static_cast<std::size_t>(plan.recv_offsets[p] + row) * row_words;
        for (std::size_t i = 0; i < row_words; ++i) {
          ASSERT_EQ(in.words[at + i], word(peer, rank, row, i)) << name_of(kind) << " " << round;
        }
      }
    }
    plan.reverse();
    const auto own = static_cast<std::size_t>(plan.recv_offsets[static_cast<std::size_t>(rank)]);
    const auto own_rows = static_cast<std::size_t>(share(round, rank, rank));
    std::vector<std::uint32_t> back(out.size());
    auto returning = exchange.start(std::move(plan), in.words.data(), back.data());
    while (!returning.done()) {
    }
    plan = exchange.finish(std::move(returning));
    for (std::size_t i = 0; i < out.size(); ++i) {
      const bool is_own = i / row_words >= own && i / row_words < own + own_rows;
      ASSERT_EQ(back[i], is_own ? 0 : out[i]) << name_of(kind) << ", round " << round;
    }
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

TEST(Staging, ChoiceIsByCanaryAndName) {
  const Communicator world = Communicator::world();
  LateDevice device;
  EXPECT_EQ(choose_transport(world, "pairwise-staged", &device), TransportKind::pairwise_staged);
  EXPECT_THROW(choose_transport(world, "pairwise-staged"), Error);
  if (mpi_claims_device_memory()) {
    EXPECT_EQ(choose_transport(world, "pairwise", &device), TransportKind::pairwise);
  } else {
    EXPECT_EQ(choose_transport(world, "auto", &device), TransportKind::pairwise_staged);
    EXPECT_THROW(choose_transport(world, "pairwise", &device), Error);
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
  EXPECT_THROW(choose_transport(world, "pairwise-staged", &device), Error);
}

}  // namespace
}  // namespace atl::comm
