// The cluster file: what is written is read again, and what is wrong with one is named.

#include <gtest/gtest.h>

#include <string>

#include "app/run/cluster.hpp"
#include "compute/error.hpp"

namespace atl {
namespace {

Cluster two_nodes() {
  Cluster cluster;
  cluster.topology.node_names = {"h1", "h2"};
  cluster.topology.node_of = {0, 0, 1, 0, 1};
  cluster.topology.local_rank_of = {0, 1, 0, 2, 1};
  cluster.links.inside = comm::LinkSpeed{1e-6, 5e9, 2e9};
  cluster.links.between = comm::LinkSpeed{20e-6, 1.2e8, 1e8};
  cluster.measured = "2026-11-22T12:00:00Z";
  cluster.mpi = "some MPI";
  return cluster;
}

TEST(ClusterFile, ReadsWhatItWrites) {
  const std::string text = cluster_text(two_nodes());
  const Cluster cluster = parse_cluster(text, "file");
  EXPECT_EQ(cluster.topology.node_names, two_nodes().topology.node_names);
  EXPECT_EQ(cluster.topology.node_of, (std::vector<int>{0, 0, 0, 1, 1}));  // node by node
  EXPECT_EQ(cluster.topology.local_rank_of, (std::vector<int>{0, 1, 2, 0, 1}));
  EXPECT_EQ(cluster.links.between->pair_bytes_per_s, 1.2e8);
  EXPECT_EQ(cluster.links.inside->latency_s, 1e-6);
  EXPECT_EQ(cluster_text(cluster), text);
}

TEST(ClusterFile, HasNullWhereThereIsNoLink) {
  Cluster cluster = two_nodes();
  cluster.links.between.reset();
  const Cluster read = parse_cluster(cluster_text(cluster), "file");
  EXPECT_FALSE(read.links.between);
  EXPECT_TRUE(read.links.inside);
}

TEST(ClusterFile, IsOfTheSameNodesAndRanksOnly) {
  const comm::Topology here = two_nodes().topology;
  comm::Topology other = parse_cluster(cluster_text(two_nodes()), "file").topology;
  EXPECT_TRUE(same_machine(here, other));
  std::swap(other.node_names[0], other.node_names[1]);
  EXPECT_FALSE(same_machine(here, other)) << "h1 has three ranks, not two";
  other.node_of = {0, 0, 1, 1, 1};
  EXPECT_TRUE(same_machine(here, other)) << "in another order";
  other.node_names[0] = "h3";
  EXPECT_FALSE(same_machine(here, other));
  other = here;
  other.node_of.push_back(1);
  EXPECT_FALSE(same_machine(here, other));
}

/// The message about the file with `from` replaced by `to`.
std::string complaint(const std::string& from, const std::string& to) {
  std::string text = cluster_text(two_nodes());
  text.replace(text.find(from), from.size(), to);
  try {
    parse_cluster(text, "my.json");
  } catch (const Error& error) {
    return error.what();
  }
  return "none";
}

TEST(ClusterFile, NamesWhatIsWrong) {
  const auto expect = [](const std::string& said, const std::string& part) {
    EXPECT_NE(said.find(part), std::string::npos) << said;
    EXPECT_TRUE(said.starts_with("my.json")) << said;
  };
  expect(complaint("{", ""), "not a cluster file");
  expect(complaint("atoll-cluster", "atoll-model"), "not a cluster file");
  expect(complaint("_version\": 1", "_version\": 2"), "another version");
  expect(complaint("\"nodes\"", "\"hosts\""), "lacks a list \"nodes\"");
  expect(complaint("\"ranks\": 3", "\"ranks\": 0"), "h1 has 0 ranks");
  expect(complaint("\"ranks\": 3", "\"ranks\": 1e99"), "number of \"ranks\"");
  expect(complaint("\"ranks\": 3", "\"ranks\": 9000000000000000000"), "at most 1048576");
  expect(complaint("\"h2\"", "7"), "takes a \"name\"");
  expect(complaint("between_nodes", "between"), "\"between_nodes\" is missing");
  expect(complaint("latency_s", "latency"), "lacks a number \"latency_s\"");
  expect(complaint("\"pair_bytes_per_s\": ", "\"pair_bytes_per_s\": -"), "must be above 0");
  expect(complaint("{", std::string(100000, '[')), "my.json");
}

}  // namespace
}  // namespace atl
