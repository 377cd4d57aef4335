// ranks: 1 2 5
// Links are measured to the same figures on all ranks, on nodes of unequal size as well, and a
// cluster file is read where it is of the same nodes, and written where it is not.

#include <gtest/gtest.h>

#include <fstream>
#include <string>

#include "app/run/cluster.hpp"
#include "comm/communicator.hpp"
#include "comm/links.hpp"
#include "tests/mpi_main.hpp"
#include "tests/shared_folder.hpp"

namespace atl {
namespace {

void expect_plausible(const comm::LinkSpeed& speed) {
  // A message takes 10 ns at least and, on the busiest machine, less than 10 s; no link of today
  // carries 10 TB/s, none of one machine less than 1 KB/s.
  EXPECT_GT(speed.latency_s, 1e-8);
  EXPECT_LT(speed.latency_s, 10);
  for (const double rate : {speed.pair_bytes_per_s, speed.node_bytes_per_s}) {
    EXPECT_GT(rate, 1e3);
    EXPECT_LT(rate, 1e13);
  }
}

/// Pretends that the last rank sits on a node of its own.
comm::Topology last_rank_apart(int ranks) {
  comm::Topology topology;
  topology.node_names = {"first", "second"};
  for (int rank = 0; rank < ranks; ++rank) {
    topology.node_of.push_back(rank == ranks - 1 ? 1 : 0);
    topology.local_rank_of.push_back(rank == ranks - 1 ? 0 : rank);
  }
  return topology;
}

TEST(Links, OfOneNode) {
  const auto world = comm::Communicator::world();
  const comm::Topology topology = comm::discover_topology(world);
  const comm::Links links = comm::measure_links(world, topology);
  EXPECT_FALSE(links.between);
  EXPECT_EQ(links.inside.has_value(), world.size() > 1);
  if (!links.inside) return;
  expect_plausible(*links.inside);
  for (const auto& other : world.allgather(*links.inside)) {
    EXPECT_EQ(other.latency_s, links.inside->latency_s);
    EXPECT_EQ(other.pair_bytes_per_s, links.inside->pair_bytes_per_s);
    EXPECT_EQ(other.node_bytes_per_s, links.inside->node_bytes_per_s);
  }
}

TEST(Links, OfNodesOfUnequalSize) {
  const auto world = comm::Communicator::world();
  if (world.size() == 1) return;  // one rank makes one node
  const comm::Links links = comm::measure_links(world, last_rank_apart(world.size()));
  ASSERT_TRUE(links.between);
  expect_plausible(*links.between);
  EXPECT_EQ(links.inside.has_value(), world.size() > 2);
  if (links.inside) expect_plausible(*links.inside);
}

TEST(Links, AreKeptInAFile) {
  const auto world = comm::Communicator::world();
  const comm::Topology topology = comm::discover_topology(world);
  const SharedFolder folder(world);
  const std::string path = folder / "cluster.json";
  const Cluster measured = find_cluster(world, topology, path, false);
  const Cluster read = find_cluster(world, topology, path, false);
  EXPECT_EQ(cluster_text(read), cluster_text(measured));

  // Changed by hand: used as it is, measured again when asked to, or of another machine.
  const auto rewrite = [&](const Cluster& cluster) {
    if (world.rank() == 0) std::ofstream(path) << cluster_text(cluster);
    world.barrier();
  };
  Cluster changed = measured;
  changed.measured = "by hand";
  rewrite(changed);
  EXPECT_EQ(find_cluster(world, topology, path, false).measured, "by hand");
  EXPECT_NE(find_cluster(world, topology, path, true).measured, "by hand");
  changed.topology.node_names[0] = "another";
  rewrite(changed);
  EXPECT_NE(find_cluster(world, topology, path, false).measured, "by hand");

  world.barrier();
  if (world.rank() == 0) std::ofstream(path) << "{}";
  world.barrier();
  EXPECT_THROW(find_cluster(world, topology, path, true), comm::AgreedFailure);
  world.barrier();
}

}  // namespace
}  // namespace atl
