// ranks: 1 2 3 5 8 16
#include "comm/exchange.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <vector>

#include "comm/transport.hpp"
#include "mpi_main.hpp"

namespace atl::comm {
namespace {

constexpr std::size_t row_words = 24;

std::uint32_t word(int round, int from, int to, int row, std::size_t at) {
  return static_cast<std::uint32_t>(((round * 64 + from) * 64 + to) * 4096 + row) * 31U +
         static_cast<std::uint32_t>(at);
}

/// Who sends how many rows to whom.
using Pattern = int (*)(int round, int from, int to, int size);

void exchange_there_and_back(TransportKind kind, Pattern pattern) {
  const Communicator world = Communicator::world();
  const int size = world.size();
  const int rank = world.rank();
  Exchange exchange(world, kind, row_words * sizeof(std::uint32_t), 2);
  for (int round = 0; round < 3; ++round) {
    ExchangePlan plan(size);
    // the counters tell the receiver what to expect
    for (int peer = 0; peer < size; ++peer) {
      const auto p = static_cast<std::size_t>(peer);
      exchange.counts_to()[2 * p] = pattern(round, rank, peer, size);
      exchange.counts_to()[2 * p + 1] = rank;
    }
    exchange.start_counts(nullptr);
    while (!exchange.counts_done()) {
    }
    int sent = 0;
    int received = 0;
    for (int peer = 0; peer < size; ++peer) {
      const auto p = static_cast<std::size_t>(peer);
      EXPECT_EQ(exchange.counts_from()[2 * p + 1], peer);
      plan.send_counts[p] = peer == rank ? 0 : pattern(round, rank, peer, size);
      plan.recv_counts[p] = peer == rank ? 0 : exchange.counts_from()[2 * p];
      plan.send_offsets[p] = sent;
      plan.recv_offsets[p] = received;
      sent += plan.send_counts[p];
      received += plan.recv_counts[p];
    }
    std::vector<std::uint32_t> out(static_cast<std::size_t>(sent) * row_words);
    std::vector<std::uint32_t> in(static_cast<std::size_t>(received) * row_words);
    std::vector<std::uint32_t> back(out.size());
    for (int peer = 0; peer < size; ++peer) {
      const auto p = static_cast<std::size_t>(peer);
      for (int row = 0; row < plan.send_counts[p]; ++row) {
        for (std::size_t i = 0; i < row_words; ++i) {
          out[static_cast<std::size_t>(plan.send_offsets[p] + row) * row_words + i] =
              word(round, rank, peer, row, i);
        }
      }
    }
    auto pending = exchange.start(std::move(plan), out.data(), in.data());
    while (!pending.done()) {
    }
    EXPECT_TRUE(pending.awaited().empty());
    plan = exchange.finish(std::move(pending));
    EXPECT_EQ(plan.rows_received(), received);
    for (int peer = 0; peer < size; ++peer) {
      const auto p = static_cast<std::size_t>(peer);
      for (int row = 0; row < plan.recv_counts[p]; ++row) {
        const auto at = static_cast<std::size_t>(plan.recv_offsets[p] + row) * row_words;
        for (std::size_t i = 0; i < row_words; ++i) {
          ASSERT_EQ(in[at + i], word(round, peer, rank, row, i));
        }
      }
    }
    plan.reverse();
    auto returning = exchange.start(std::move(plan), in.data(), back.data());
    while (!returning.done()) {
    }
    plan = exchange.finish(std::move(returning));
    EXPECT_EQ(back, out);
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

TEST(Exchange, RowsArriveAndReturn) {
  for (const auto kind : {TransportKind::ialltoallv, TransportKind::pairwise}) {
    for (const Pattern pattern : {uneven, to_one, from_one, nothing}) {
      exchange_there_and_back(kind, pattern);
    }
  }
}

/// Rows that fit go with the counters, the others after them; the receiver sees no difference.
TEST(Exchange, RowsMayComeWithTheCounters) {
  const Communicator world = Communicator::world();
  const int size = world.size();
  const int rank = world.rank();
  constexpr std::size_t row_bytes = row_words * sizeof(std::uint32_t);
  for (const auto kind : {TransportKind::ialltoallv, TransportKind::pairwise}) {
    for (const std::size_t fitting : {0, 1, 2, 100}) {  // rows that fit; patterns have up to 4
      Exchange exchange(world, kind, row_bytes, 2, 2 * sizeof(std::int32_t) + fitting * row_bytes);
      for (int round = 0; round < 3; ++round) {
        std::vector<std::uint32_t> out;
        for (int peer = 0; peer < size; ++peer) {
          const int count = uneven(round, rank, peer, size);
          exchange.counts_to()[static_cast<std::size_t>(2 * peer)] = count / 2;
          exchange.counts_to()[static_cast<std::size_t>(2 * peer + 1)] = count - count / 2;
          for (int row = 0; row < count; ++row) {
            for (std::size_t i = 0; i < row_words; ++i) {
              out.push_back(word(round, rank, peer, row, i));
            }
          }
        }
        exchange.start_counts(out.data());
        while (!exchange.counts_done()) {
        }
        ExchangePlan plan(size);
        exchange.plan_rows(plan);
        std::vector<std::uint32_t> in(static_cast<std::size_t>(plan.rows_received()) * row_words);
        auto pending = exchange.dispatch(std::move(plan), out.data(), in.data());
        while (!pending.done()) {
        }
        plan = exchange.finish(std::move(pending));
        for (int peer = 0; peer < size; ++peer) {
          const auto p = static_cast<std::size_t>(peer);
          const int count = peer == rank ? 0 : uneven(round, peer, rank, size);
          ASSERT_EQ(plan.recv_counts[p], count);
          for (int row = 0; row < count; ++row) {
            const auto at = static_cast<std::size_t>(plan.recv_offsets[p] + row) * row_words;
            for (std::size_t i = 0; i < row_words; ++i) {
              ASSERT_EQ(in[at + i], word(round, peer, rank, row, i));
            }
          }
        }
        plan.reverse();
        std::vector<std::uint32_t> back(out.size());
        auto returning = exchange.start(std::move(plan), in.data(), back.data());
        while (!returning.done()) {
        }
        plan = exchange.finish(std::move(returning));
        const auto own =
            static_cast<std::size_t>(plan.recv_offsets[static_cast<std::size_t>(rank)]);
        const auto own_rows = static_cast<std::size_t>(uneven(round, rank, rank, size));
        for (std::size_t i = 0; i < out.size(); ++i) {
          const bool is_own = i / row_words >= own && i / row_words < own + own_rows;
          ASSERT_EQ(back[i], is_own ? 0 : out[i]);
        }
      }
    }
  }
}

TEST(Exchange, ChunksOvertakeOneAnother) {
  const Communicator world = Communicator::world();
  const int size = world.size();
  Exchange first(world, TransportKind::ialltoallv, 64, 1);
  Exchange second(world, TransportKind::ialltoallv, 64, 1);
  // Ranks start the two chunks' exchanges in different orders; own communicators keep them apart.
  auto* a = world.rank() % 2 == 0 ? &first : &second;
  auto* b = world.rank() % 2 == 0 ? &second : &first;
  const auto fill = [&](Exchange* e, int value) {
    for (int peer = 0; peer < size; ++peer) e->counts_to()[static_cast<std::size_t>(peer)] = value;
  };
  fill(&first, 100 + world.rank());
  fill(&second, 200 + world.rank());
  a->start_counts(nullptr);
  b->start_counts(nullptr);
  bool a_done = false;
  bool b_done = false;
  while (!a_done || !b_done) {
    b_done = b_done || b->counts_done();
    a_done = a_done || a->counts_done();
  }
  for (int peer = 0; peer < size; ++peer) {
    EXPECT_EQ(first.counts_from()[static_cast<std::size_t>(peer)], 100 + peer);
    EXPECT_EQ(second.counts_from()[static_cast<std::size_t>(peer)], 200 + peer);
  }
}

/// Everybody but the last rank starts; all of them come to await that one alone, both ways where
/// messages are too large to leave without their receiver.
TEST(Exchange, TellsWhomItAwaits) {
  const Communicator world = Communicator::world();
  const int last = world.size() - 1;
  if (last == 0) return;  // nobody to await
  constexpr std::size_t row_bytes = std::size_t{1} << 20;
  Exchange exchange(world, TransportKind::pairwise, row_bytes, 1);
  const std::vector<int> only_last{last};
  const bool late = world.rank() == last;
  const auto meet = [&world] { world.allgather(0); };

  std::fill(exchange.counts_to().begin(), exchange.counts_to().end(), 1);
  if (late) meet();
  exchange.start_counts(nullptr);
  if (!late) {
    do {
      EXPECT_FALSE(exchange.counts_done());
    } while (exchange.awaited_counts().from != only_last);
    meet();
  }
  while (!exchange.counts_done()) {
  }
  EXPECT_TRUE(exchange.awaited_counts().empty());

  ExchangePlan plan(world.size());
  exchange.plan_rows(plan);
  std::vector<std::byte> out(row_bytes * static_cast<std::size_t>(world.size()));
  std::vector<std::byte> in(row_bytes * static_cast<std::size_t>(plan.rows_received()));
  if (late) meet();
  auto pending = exchange.dispatch(std::move(plan), out.data(), in.data());
  if (!late) {
    do {
      EXPECT_FALSE(pending.done());
    } while (pending.awaited().from != only_last || pending.awaited().to != only_last);
    meet();
  }
  while (!pending.done()) {
  }
}

TEST(Exchange, CanaryPassesAndChoiceIsByName) {
  const Communicator world = Communicator::world();
  EXPECT_TRUE(canary(world, TransportKind::ialltoallv));
  EXPECT_TRUE(canary(world, TransportKind::pairwise));
  EXPECT_EQ(choose_transport(world, "pairwise"), TransportKind::pairwise);
  EXPECT_EQ(choose_transport(world, "auto"), TransportKind::ialltoallv);
}

}  // namespace
}  // namespace atl::comm
