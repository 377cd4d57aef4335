// ranks: 1 2 4
// Many requests tested with one call: what is complete is found, once, in whatever order it comes.

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "comm/communicator.hpp"
#include "comm/poller.hpp"
#include "tests/mpi_main.hpp"

namespace atl::comm {
namespace {

/// Ints from every other rank, and one to each.
struct Round {
  Requests requests;
  std::vector<int> in, out;
  int tag;

  Round(const Communicator& world, int round)
      : in(static_cast<std::size_t>(world.size()), -1),
        out(static_cast<std::size_t>(world.size())),
        tag(round) {
    for (int peer = 0; peer < world.size(); ++peer) {
      if (peer == world.rank()) continue;
      check(MPI_Irecv(&in[static_cast<std::size_t>(peer)], 1, MPI_INT, peer, tag, world.raw(),
                      requests.add()),
            "MPI_Irecv");
    }
  }
  void send(const Communicator& world) {
    for (int peer = 0; peer < world.size(); ++peer) {
      if (peer == world.rank()) continue;
      out[static_cast<std::size_t>(peer)] = 1000 * tag + world.rank();
      check(MPI_Isend(&out[static_cast<std::size_t>(peer)], 1, MPI_INT, peer, tag, world.raw(),
                      requests.add()),
            "MPI_Isend");
    }
  }
  void expect_all(const Communicator& world) const {
    for (int peer = 0; peer < world.size(); ++peer) {
      if (peer == world.rank()) continue;
      EXPECT_EQ(in[static_cast<std::size_t>(peer)], 1000 * tag + peer);
    }
  }
};

TEST(Requests, PollerFindsEachWhenItsOwnMessagesAreThere) {
  const auto world = Communicator::world();
  constexpr int rounds = 5;
  std::vector<std::unique_ptr<Round>> all;
  for (int i = 0; i < rounds; ++i) all.push_back(std::make_unique<Round>(world, i));
  Poller poller;
  // Sent from the last to the first: what was added last completes first.
  for (int i = rounds - 1; i >= 0; --i) {
    all[static_cast<std::size_t>(i)]->send(world);
    while (!all[static_cast<std::size_t>(i)]->requests.complete()) {
      poller.clear();
      for (const auto& round : all) poller.add(round->requests);
      poller.test();
    }
    all[static_cast<std::size_t>(i)]->expect_all(world);
    for (int earlier = 0; earlier < i; ++earlier) {
      EXPECT_EQ(all[static_cast<std::size_t>(earlier)]->requests.complete(), world.size() == 1);
    }
    for (const MPI_Request request : all[static_cast<std::size_t>(i)]->requests.handles()) {
      EXPECT_EQ(request, MPI_REQUEST_NULL);
    }
    world.barrier();
  }
}

TEST(Requests, TestAloneCompletesToo) {
  const auto world = Communicator::world();
  Round round(world, 7);
  EXPECT_EQ(round.requests.test(), world.size() == 1);
  world.barrier();  // nobody has sent before
  round.send(world);
  while (!round.requests.test()) {
  }
  round.expect_all(world);
}

TEST(Requests, PersistentOnesAreUsedAgain) {
  const auto world = Communicator::world();
  const int next = (world.rank() + 1) % world.size();
  const int previous = (world.rank() + world.size() - 1) % world.size();
  int in = -1;
  int out = -1;
  Requests requests;
  check(MPI_Recv_init(&in, 1, MPI_INT, previous, 9, world.raw(), requests.add()), "MPI_Recv_init");
  check(MPI_Send_init(&out, 1, MPI_INT, next, 9, world.raw(), requests.add()), "MPI_Send_init");
  requests.none_posted();
  EXPECT_TRUE(requests.test());
  Poller poller;
  for (int i = 0; i < 3; ++i) {
    out = 100 * i + world.rank();
    check(MPI_Startall(2, requests.handles().data()), "MPI_Startall");
    requests.all_posted();
    EXPECT_FALSE(requests.complete());
    while (!requests.complete()) {
      poller.clear();
      poller.add(requests);
      poller.test();
    }
    EXPECT_EQ(in, 100 * i + previous);
  }
  for (MPI_Request& request : requests.handles()) MPI_Request_free(&request);
}

}  // namespace
}  // namespace atl::comm
