// ranks: 1 2 3 5 8 16
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <vector>

#include "comm/lane.hpp"
#include "comm/transports/choice.hpp"
#include "tests/mpi_main.hpp"

namespace atl::comm {
namespace {

constexpr std::size_t row_words = 24;

std::uint32_t word(int round, int from, int to, int row, std::size_t at) {
  return static_cast<std::uint32_t>(((round * 64 + from) * 64 + to) * 4096 + row) * 31U +
         static_cast<std::uint32_t>(at);
}

LaneOptions options_of(TransportKind kind, std::size_t row_bytes, int counts_per_member,
                       std::size_t first_message_bytes = 0) {
  LaneOptions options;
  options.transport = kind;
  options.row_bytes = row_bytes;
  options.counts_per_member = counts_per_member;
  options.first_message_bytes = first_message_bytes;
  return options;
}

void wait_for_counters(Lane& lane) {
  while (!lane.counters().test()) {
  }
}
void wait_for_rows(Lane& lane) {
  while (!lane.test()) {
  }
}

/// Who sends how many rows to whom.
using Pattern = int (*)(int round, int from, int to, int size);

/// Rows grouped by member; own rows keep their place among those sent.
void plan_sends(RowMove& move, int rank, Pattern pattern, int round) {
  const int size = static_cast<int>(move.send_counts.size());
  for (int peer = 0, sent = 0; peer < size; ++peer) {
    const auto p = static_cast<std::size_t>(peer);
    const int rows = pattern(round, rank, peer, size);
    move.send_offsets[p] = sent;
    move.send_counts[p] = peer == rank ? 0 : rows;
    sent += rows;
  }
}
void plan_receives(RowMove& move, int rank, const std::vector<int>& rows) {
  for (int peer = 0, received = 0; peer < static_cast<int>(rows.size()); ++peer) {
    const auto p = static_cast<std::size_t>(peer);
    move.recv_offsets[p] = received;
    move.recv_counts[p] = peer == rank ? 0 : rows[p];
    received += move.recv_counts[p];
  }
}

std::vector<std::uint32_t> rows_to_send(int round, int rank, int size, Pattern pattern) {
  std::vector<std::uint32_t> out;
  for (int peer = 0; peer < size; ++peer) {
    for (int row = 0; row < pattern(round, rank, peer, size); ++row) {
      for (std::size_t i = 0; i < row_words; ++i) out.push_back(word(round, rank, peer, row, i));
    }
  }
  return out;
}

void expect_arrived(const RowMove& move, int round, int rank,
                    const std::vector<std::uint32_t>& in) {
  for (std::size_t p = 0; p < move.recv_counts.size(); ++p) {
    for (int row = 0; row < move.recv_counts[p]; ++row) {
      const auto at = static_cast<std::size_t>(move.recv_offsets[p] + row) * row_words;
      for (std::size_t i = 0; i < row_words; ++i) {
        ASSERT_EQ(in[at + i], word(round, static_cast<int>(p), rank, row, i));
      }
    }
  }
}

/// Own rows never travel.
void expect_returned(const RowMove& move, int rank, int own_rows,
                     const std::vector<std::uint32_t>& out,
                     const std::vector<std::uint32_t>& back) {
  const auto own = static_cast<std::size_t>(move.recv_offsets[static_cast<std::size_t>(rank)]);
  for (std::size_t i = 0; i < out.size(); ++i) {
    const std::size_t row = i / row_words;
    const bool is_own = row >= own && row < own + static_cast<std::size_t>(own_rows);
    ASSERT_EQ(back[i], is_own ? 0 : out[i]);
  }
}

void there_and_back(TransportKind kind, Pattern pattern, std::size_t first_message_bytes) {
  const Communicator world = Communicator::world();
  const int size = world.size();
  const int rank = world.rank();
  Lane lane(world, options_of(kind, row_words * sizeof(std::uint32_t), 2, first_message_bytes));
  RowMove move(size);
  for (int round = 0; round < 3; ++round) {
    for (int peer = 0; peer < size; ++peer) {  // the counters tell the receiver what to expect
      lane.counters().to(peer)[0] = pattern(round, rank, peer, size);
      lane.counters().to(peer)[1] = rank;
    }
    plan_sends(move, rank, pattern, round);
    const auto out = rows_to_send(round, rank, size, pattern);
    lane.counters().start(move, out.data());
    wait_for_counters(lane);
    std::vector<int> rows;
    for (int peer = 0; peer < size; ++peer) {
      EXPECT_EQ(lane.counters().from(peer)[1], peer);
      EXPECT_EQ(lane.counters().from(peer)[0], pattern(round, peer, rank, size));
      rows.push_back(lane.counters().from(peer)[0]);
    }
    plan_receives(move, rank, rows);
    std::vector<std::uint32_t> in(static_cast<std::size_t>(move.rows_received()) * row_words);
    lane.start_told(move, out.data(), in.data());
    wait_for_rows(lane);
    EXPECT_TRUE(lane.awaited().empty());
    expect_arrived(move, round, rank, in);
    move.reverse();
    std::vector<std::uint32_t> back(out.size());
    lane.start(move, in.data(), back.data());
    wait_for_rows(lane);
    expect_returned(move, rank, pattern(round, rank, rank, size), out, back);
    move.reverse();
  }
}

int uneven(int round, int from, int to, int /*size*/) {
  return (from * 7 + to * 3 + round) % 5;
}
int to_one(int round, int /*from*/, int to, int size) {
  return to == round % size ? 40 : 0;
}
int from_one(int round, int from, int to, int size) {
  return from == (round + 1) % size ? 3 + to : 0;
}
int nothing(int, int, int, int) {
  return 0;
}

TEST(Lane, RowsArriveAndReturn) {
  for (const auto kind : {TransportKind::ialltoallv, TransportKind::pairwise}) {
    for (const Pattern pattern : {uneven, to_one, from_one, nothing}) {
      there_and_back(kind, pattern, 0);
    }
  }
}

/// Rows that fit go with the counters, the others after them; the receiver sees no difference.
TEST(Lane, RowsMayComeWithTheCounters) {
  constexpr std::size_t row_bytes = row_words * sizeof(std::uint32_t);
  for (const auto kind : {TransportKind::ialltoallv, TransportKind::pairwise}) {
    for (const std::size_t fitting : {1, 2, 100}) {  // rows that fit; patterns have up to 4, or 40
      for (const Pattern pattern : {uneven, to_one, from_one, nothing}) {
        there_and_back(kind, pattern, 2 * sizeof(std::int32_t) + fitting * row_bytes);
      }
    }
  }
}

TEST(Lane, ChunksOvertakeOneAnother) {
  const Communicator world = Communicator::world();
  const int size = world.size();
  Lane first(world, options_of(TransportKind::ialltoallv, 64, 1));
  Lane second(world, options_of(TransportKind::ialltoallv, 64, 1));
  // Ranks start the two chunks' counters in different orders; own communicators keep them apart.
  Counters* a = world.rank() % 2 == 0 ? &first.counters() : &second.counters();
  Counters* b = world.rank() % 2 == 0 ? &second.counters() : &first.counters();
  for (int peer = 0; peer < size; ++peer) {
    first.counters().to(peer)[0] = 100 + world.rank();
    second.counters().to(peer)[0] = 200 + world.rank();
  }
  const RowMove nothing_along(size);
  a->start(nothing_along, nullptr);
  b->start(nothing_along, nullptr);
  bool a_done = false;
  bool b_done = false;
  while (!a_done || !b_done) {
    b_done = b_done || b->test();
    a_done = a_done || a->test();
  }
  for (int peer = 0; peer < size; ++peer) {
    EXPECT_EQ(first.counters().from(peer)[0], 100 + peer);
    EXPECT_EQ(second.counters().from(peer)[0], 200 + peer);
  }
}

/// Everybody but the last rank starts; all of them come to await that one alone, both ways where
/// messages are too large to leave without their receiver.
TEST(Lane, TellsWhomItAwaits) {
  const Communicator world = Communicator::world();
  const int last = world.size() - 1;
  if (last == 0) return;  // nobody to await
  constexpr std::size_t row_bytes = std::size_t{1} << 20;
  Lane lane(world, options_of(TransportKind::pairwise, row_bytes, 1));
  const std::vector<int> only_last{last};
  const bool late = world.rank() == last;
  const auto meet = [&world] { world.allgather(0); };

  RowMove move(world.size());
  const Pattern one_each = [](int, int, int, int) { return 1; };
  plan_sends(move, world.rank(), one_each, 0);
  for (int peer = 0; peer < world.size(); ++peer) lane.counters().to(peer)[0] = 1;
  if (late) meet();
  lane.counters().start(move, nullptr);
  if (!late) {
    do {
      EXPECT_FALSE(lane.counters().test());
    } while (lane.counters().awaited().from != only_last);
    meet();
  }
  wait_for_counters(lane);
  EXPECT_TRUE(lane.counters().awaited().empty());

  plan_receives(move, world.rank(), std::vector<int>(static_cast<std::size_t>(world.size()), 1));
  std::vector<std::byte> out(row_bytes * static_cast<std::size_t>(world.size()));
  std::vector<std::byte> in(row_bytes * static_cast<std::size_t>(move.rows_received()));
  if (late) meet();
  lane.start_told(move, out.data(), in.data());
  if (!late) {
    do {
      EXPECT_FALSE(lane.test());
    } while (lane.awaited().from != only_last || lane.awaited().to != only_last);
    meet();
  }
  wait_for_rows(lane);
}

TEST(Lane, CanaryPassesAndChoiceIsByName) {
  const Communicator world = Communicator::world();
  EXPECT_TRUE(canary(world, TransportKind::ialltoallv));
  EXPECT_TRUE(canary(world, TransportKind::pairwise));
  EXPECT_EQ(choose_transport(world, TransportKind::pairwise), TransportKind::pairwise);
  EXPECT_EQ(choose_transport(world, std::nullopt), TransportKind::ialltoallv);
}

}  // namespace
}  // namespace atl::comm
