// ranks: 1 2 3 5 8
// timeout: 240
// Rows of device memory over every transport: a pretended device whose copies happen late, so that
// whoever does not wait for them sends or reads what is not there yet.

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <deque>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "comm/environment.hpp"
#include "comm/lane.hpp"
#include "comm/mpi_library.hpp"
#include "comm/transports/choice.hpp"
#include "tests/mpi_main.hpp"

/// What the library that runs says of itself, as far as these tests are concerned.
static bool takes_device_memory = false;
extern "C" int MPIX_Query_cuda_support() {
  return takes_device_memory ? 1 : 0;
}

namespace atl::comm {
namespace {

/// While it lives.
struct CudaAware {
  CudaAware() { takes_device_memory = true; }
  ~CudaAware() { takes_device_memory = false; }
  CudaAware(const CudaAware&) = delete;
  CudaAware& operator=(const CudaAware&) = delete;
};

constexpr std::size_t row_words = 24;
constexpr std::size_t row_bytes = row_words * sizeof(std::uint32_t);

/// Host memory that pretends to be a device's. A copy happens when it has been asked for a few
/// times.
class LateDevice : public compute::DeviceMemory {
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
  EXPECT_EQ(choose_transport(world, std::nullopt, &device), TransportKind::pairwise_staged);
  EXPECT_THROW(choose_transport(world, TransportKind::pairwise, &device), Error);
  const CudaAware aware;
  EXPECT_EQ(choose_transport(world, TransportKind::pairwise, &device), TransportKind::pairwise);
}

class LendingDevice final : public LateDevice {
 public:
  void lend() override { lent = true; }
  bool lent = false;
};

TEST(Staging, WhatIsGivenToMpiIsLent) {
  const Communicator world = Communicator::world();
  if (world.size() > 3) return;  // MiB for each: fewer ranks tell as much
  const CudaAware aware;
  LendingDevice device;
  TransportSearch search;
  search.device = &device;
  const TransportChoice choice = find_transport(world, search);
  EXPECT_EQ(device.lent, !info_of(choice.kind).staged);
  ASSERT_FALSE(choice.tried.empty());
  EXPECT_FALSE(info_of(choice.tried.front().kind).staged);
  if (world.size() == 1) return;
  // The faster one is taken, whichever it is.
  ASSERT_EQ(choice.tried.size(), 2U);
  const bool staged_is_faster = choice.tried[1].bytes_per_s > 1.1 * choice.tried[0].bytes_per_s;
  EXPECT_EQ(info_of(choice.kind).staged, staged_is_faster);
}

/// With pieces of MiB; the device is lent where MPI gets its pointers.
TEST(Staging, LargeRowsAreTriedAndTimed) {
  const Communicator world = Communicator::world();
  if (world.size() > 3) return;  // MiB for each: fewer ranks tell as much
  for (const TransportInfo& transport : transports) {
    LateDevice device;
    const CanaryResult result = fly_canary(world, transport.kind, {&device, true});
    EXPECT_TRUE(result.passed && result.ended) << transport.name;
    EXPECT_EQ(result.bytes_per_s > 0, world.size() > 1) << transport.name;
    // More than the small exchange had: 4 MiB from the rank before this one.
    if (world.size() == 1) continue;
    EXPECT_GT(device.pinned_bytes, std::size_t{8} << 20) << transport.name;
  }
}

/// A device whose copies never end.
class StuckDevice final : public compute::DeviceMemory {
 public:
  Bytes allocate(std::size_t bytes) override {
    ++there;
    return {new std::byte[bytes](), [this](const std::byte* memory) {
              --there;
              delete[] memory;
            }};
  }
  Bytes allocate_host(std::size_t bytes) override { return allocate(bytes); }
  Copy to_host(void*, const void*, std::size_t) override { return ++last; }
  Copy to_device(void* to, const void* from, std::size_t bytes) override {
    std::memcpy(to, from, bytes);
    return 0;
  }
  bool copied(Copy copy) override { return copy == 0; }

  int there = 0;  // pieces of memory
  Copy last = 0;
};

/// MPI may still use the memory of what did not end, and who comes next would not know what state
/// it is in.
TEST(Staging, WhatDoesNotEndIsNotFreedAndNothingElseIsTried) {
  const Communicator world = Communicator::world();
  if (world.size() == 1) return;          // nothing travels
  static auto* device = new StuckDevice;  // outlives what is left to MPI
  TransportSearch search;
  search.device = device;
  search.patience = std::chrono::milliseconds(200);
  try {
    find_transport(world, search);
    FAIL() << "an exchange that does not end";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("did not end within"), std::string::npos)
        << error.what();
  }
  EXPECT_GT(device->there, 0);
}

/// A start that crashed while it tried a transport is followed by one that leaves it out.
TEST(Staging, WhatAnEarlierStartCrashedOfIsLeftOut) {
  const Communicator world = Communicator::world();
  if (world.size() > 3) return;  // MiB for each: fewer ranks tell as much
  const CudaAware aware;
  const std::string note = world.broadcast(
      world.rank() == 0
          ? (std::filesystem::temp_directory_path() / fmt::format("atoll-note-{}", getpid()))
                .string()
          : "",
      0);
  LateDevice device;
  TransportSearch search;
  search.device = &device;
  search.note = note;
  const TransportChoice first = find_transport(world, search);
  EXPECT_EQ(first.left_out, "");
  world.barrier();
  EXPECT_FALSE(std::filesystem::exists(note));  // it did not crash
  world.barrier();
  const auto direct = first.tried.front().kind;
  if (world.rank() == 0) {
    std::ofstream(note) << name_of(direct) << " of " << Environment::library() << "\n"
                        << "pairwise-staged of another library\n";
  }
  world.barrier();
  const TransportChoice second = find_transport(world, search);
  EXPECT_NE(second.left_out.find(note), std::string::npos) << second.left_out;
  for (const auto& tried : second.tried) EXPECT_NE(tried.kind, direct);
  world.barrier();
  EXPECT_TRUE(std::filesystem::exists(note));  // for the next start
  search.wanted = direct;                      // who asks for it, gets it
  EXPECT_EQ(find_transport(world, search).kind, direct);
  world.barrier();
  if (world.rank() == 0) std::filesystem::remove(note);
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
