// ranks: 1 2 3 5
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "comm/read_once.hpp"
#include "tests/mpi_main.hpp"

namespace atl::comm {
namespace {

/// Nodes of the given sizes, over as many ranks as there are; ranks are dealt like cards where
/// `dealt`, else node by node.
Topology nodes_of(int num_ranks, const std::vector<int>& sizes, bool dealt) {
  Topology topology;
  std::vector<int> left;
  int seats = 0;
  for (std::size_t node = 0; seats < num_ranks; ++node) {
    left.push_back(std::min(sizes[node % sizes.size()], num_ranks - seats));
    seats += left.back();
    topology.node_names.push_back("node" + std::to_string(node));
  }
  std::vector<int> taken(left.size());
  int node = 0;
  for (int rank = 0; rank < num_ranks; ++rank) {
    const auto nodes = static_cast<int>(left.size());
    while (left[static_cast<std::size_t>(node)] == 0) node = (node + 1) % nodes;
    topology.node_of.push_back(node);
    topology.local_rank_of.push_back(taken[static_cast<std::size_t>(node)]++);
    --left[static_cast<std::size_t>(node)];
    if (dealt) node = (node + 1) % nodes;
  }
  return topology;
}

std::byte value_at(std::size_t i) {
  return static_cast<std::byte>((i * 2654435761U) >> 16U);
}

/// Fills this rank's slice, shares, and returns how many bytes it had read; all must be right.
std::size_t read_and_share(const ReadOnce& read_once, std::size_t bytes, std::uint64_t number) {
  std::vector<std::byte> piece(bytes);
  const ReadOnce::Slice slice = read_once.slice_of(bytes, number);
  EXPECT_LE(slice.first + slice.bytes, bytes);
  for (std::size_t i = slice.first; i < slice.first + slice.bytes; ++i) piece[i] = value_at(i);
  read_once.share(piece, number);
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < bytes; ++i) wrong += piece[i] == value_at(i) ? 0 : 1;
  EXPECT_EQ(wrong, 0U) << bytes << " bytes";
  return slice.bytes;
}

TEST(ReadOnce, BringsEveryByteToAllRanksFromOneReader) {
  const Communicator world = Communicator::world();
  for (const bool dealt : {false, true}) {
    for (const std::vector<int>& sizes :
         {std::vector<int>{5}, std::vector<int>{1}, std::vector<int>{2}, std::vector<int>{3, 1}}) {
      const ReadOnce read_once(world, nodes_of(world.size(), sizes, dealt));
      std::uint64_t number = 0;
      for (const std::size_t bytes : {1UL, 4096UL, 131071UL, 1UL << 20, (3UL << 20) + 12345UL}) {
        ASSERT_LE(bytes, read_once.piece_bytes());
        auto read = static_cast<std::int64_t>(read_and_share(read_once, bytes, number++));
        world.allreduce(std::span(&read, 1), Communicator::Reduce::sum);
        EXPECT_EQ(read, static_cast<std::int64_t>(bytes)) << "each byte is read once";
      }
    }
  }
}

TEST(ReadOnce, GivesSmallPiecesAReaderEachInTurn) {
  const Communicator world = Communicator::world();
  const Topology topology = nodes_of(world.size(), {2}, false);
  const ReadOnce read_once(world, topology);
  int fewest = world.size();
  for (int node = 0; node < topology.num_nodes(); ++node) {
    fewest = std::min(fewest, topology.ranks_on(node));
  }
  const int readers = fewest * topology.num_nodes();
  std::int64_t mine = 0;
  for (int number = 0; number < 3 * readers; ++number) {
    mine += static_cast<std::int64_t>(read_and_share(read_once, 100, number));
  }
  const bool reads = topology.local_rank_of[static_cast<std::size_t>(world.rank())] < fewest;
  EXPECT_EQ(mine, reads ? 300 : 0);
}

TEST(ReadOnce, CutsALargePieceAmongAllReaders) {
  const Communicator world = Communicator::world();
  const ReadOnce read_once(world, nodes_of(world.size(), {1}, false));
  const std::size_t bytes = std::size_t{4} << 20;
  const auto share = static_cast<double>(bytes) / world.size();
  EXPECT_NEAR(static_cast<double>(read_and_share(read_once, bytes, 7)), share, 5 * 4096.0);
}

}  // namespace
}  // namespace atl::comm
