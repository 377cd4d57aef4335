// ranks: 1 2 3 5
#include <gtest/gtest.h>

#include <chrono>
#include <numeric>
#include <thread>

#include "comm/communicator.hpp"
#include "comm/topology.hpp"
#include "tests/mpi_main.hpp"

namespace atl::comm {
namespace {

TEST(Communicator, GathersTextsOfUnequalSize) {
  const Communicator world = Communicator::world();
  const std::string mine(static_cast<std::size_t>(world.rank()) * 1000,
                         static_cast<char>('a' + world.rank()));
  const auto all = world.gather(mine, 0);
  if (world.rank() != 0) {
    EXPECT_TRUE(all.empty());
    return;
  }
  ASSERT_EQ(all.size(), static_cast<std::size_t>(world.size()));
  for (int rank = 0; rank < world.size(); ++rank) {
    EXPECT_EQ(all[static_cast<std::size_t>(rank)],
              std::string(static_cast<std::size_t>(rank) * 1000, static_cast<char>('a' + rank)));
  }
}

TEST(Communicator, BroadcastsTheRootsText) {
  const Communicator world = Communicator::world();
  const int root = world.size() - 1;
  const std::string text = world.rank() == root ? std::string("from\0the root", 13) : "mine";
  EXPECT_EQ(world.broadcast(text, root), std::string("from\0the root", 13));
}

TEST(Communicator, ReducesAndSaysWhere) {
  const Communicator world = Communicator::world();
  std::vector<double> values = {1.0 * world.rank(), -1.0 * world.rank(), 3.0};
  std::vector<double> largest(3);
  std::vector<int> where(3);
  world.allreduce_max_where(values, largest, where);
  EXPECT_EQ(largest, (std::vector<double>{world.size() - 1.0, 0.0, 3.0}));
  EXPECT_EQ(where, (std::vector<int>{world.size() - 1, 0, 0}));
  std::vector<std::int64_t> sums = {world.rank(), 1};
  world.allreduce(std::span(sums), Communicator::Reduce::sum);
  EXPECT_EQ(sums[0], world.size() * (world.size() - 1) / 2);
  EXPECT_EQ(sums[1], world.size());
}

TEST(Communicator, AFailureAnywhereIsAFailureEverywhere) {
  const Communicator world = Communicator::world();
  const int culprit = world.size() / 2;
  try {
    world.agree([&] {
      if (world.rank() >= culprit) throw UsageError("the disk is full");
    });
    FAIL() << "nobody threw";
  } catch (const AgreedFailure& failure) {
    EXPECT_NE(std::string(failure.what()).find("the disk is full"), std::string::npos);
    EXPECT_EQ(failure.exit_code(), 2);
    EXPECT_EQ(failure.reporter(), world.rank() == culprit);
  }
  EXPECT_NO_THROW(world.agree([] {}));
}

TEST(Topology, RanksOfOneMachineShareANode) {
  const Communicator world = Communicator::world();
  const Topology topology = discover_topology(world);
  EXPECT_EQ(topology.num_nodes(), 1);
  EXPECT_EQ(topology.num_ranks(), world.size());
  EXPECT_EQ(topology.ranks_on(0), world.size());
  std::vector<int> expected(static_cast<std::size_t>(world.size()));
  std::iota(expected.begin(), expected.end(), 0);
  EXPECT_EQ(topology.local_rank_of, expected);
  EXPECT_EQ(clock_offset(world, topology), 0.0);
}

}  // namespace
}  // namespace atl::comm
