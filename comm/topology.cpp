#include "comm/topology.hpp"

#include <unistd.h>

#include <algorithm>
#include <limits>

#include "comm/communicator.hpp"
#include "comm/watchdog.hpp"
#include "compute/clock.hpp"

namespace atl::comm {

int Topology::ranks_on(int node) const {
  return static_cast<int>(std::count(node_of.begin(), node_of.end(), node));
}

Topology discover_topology(const Communicator& world) {
  struct Seat {
    int leader = 0;  // lowest world rank of the node: names the node uniquely, hostnames may repeat
    int local_rank = 0;
    char host[64] = {};
  };
  Seat seat;
  {
    const Communicator node = world.split_shared();
    const auto members = node.allgather(world.rank());
    seat.leader = *std::min_element(members.begin(), members.end());
    seat.local_rank = node.rank();
  }
  gethostname(seat.host, sizeof(seat.host) - 1);

  Topology topology;
  std::vector<int> leaders;
  for (const Seat& s : world.allgather(seat)) {
    auto found = std::find(leaders.begin(), leaders.end(), s.leader);
    if (found == leaders.end()) {
      found = leaders.insert(leaders.end(), s.leader);
      topology.node_names.emplace_back(s.host);
    }
    topology.node_of.push_back(static_cast<int>(found - leaders.begin()));
    topology.local_rank_of.push_back(s.local_rank);
  }
  return topology;
}

double clock_offset(const Communicator& world, const Topology& topology) {
  constexpr int tries = 16;
  constexpr int tag = 11;
  const Waiting waiting("comparing clocks");
  double offset = 0;
  for (int peer = 1; peer < world.size(); ++peer) {
    if (topology.node_of[static_cast<std::size_t>(peer)] == topology.node_of[0]) continue;
    if (world.rank() == 0) {
      for (int i = 0; i < tries; ++i) {
        double theirs = 0;
        check(MPI_Recv(&theirs, 1, MPI_DOUBLE, peer, tag, world.raw(), MPI_STATUS_IGNORE),
              "MPI_Recv");
        const double mine = now_seconds();
        check(MPI_Send(&mine, 1, MPI_DOUBLE, peer, tag, world.raw()), "MPI_Send");
      }
    } else if (world.rank() == peer) {
      double best_round_trip = std::numeric_limits<double>::infinity();
      for (int i = 0; i < tries; ++i) {
        const double begin = now_seconds();
        double theirs = 0;
        check(MPI_Send(&begin, 1, MPI_DOUBLE, 0, tag, world.raw()), "MPI_Send");
        check(MPI_Recv(&theirs, 1, MPI_DOUBLE, 0, tag, world.raw(), MPI_STATUS_IGNORE), "MPI_Recv");
        const double end = now_seconds();
        if (end - begin < best_round_trip) {
          best_round_trip = end - begin;
          offset = theirs - (begin + end) / 2;
        }
      }
    }
  }
  return offset;
}

}  // namespace atl::comm
