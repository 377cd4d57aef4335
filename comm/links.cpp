#include "comm/links.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <vector>

#include "comm/communicator.hpp"
#include "comm/watchdog.hpp"
#include "compute/clock.hpp"

namespace atl::comm {

namespace {

constexpr int tag = 12;
constexpr int nobody = MPI_PROC_NULL;
constexpr std::size_t message_bytes = std::size_t{256} << 10;  // above any rendezvous threshold
constexpr int messages_at_once = 4;
constexpr int warm_up_trips = 8;
constexpr int trips = 64;
constexpr double enough_seconds = 0.05;  // of one measurement
constexpr int measurements = 3;          // the best counts: others may have had a rank's core
constexpr int most_rounds = 512;

/// Whom this rank sends to and receives from; `nobody` where it has no part.
struct Partners {
  int to = nobody;
  int from = nobody;
};

class Measurement {
 public:
  Measurement(const Communicator& world, const Topology& topology)
      : world_(world),
        topology_(topology),
        node_(topology.node_of[static_cast<std::size_t>(world.rank())]),
        local_(topology.local_rank_of[static_cast<std::size_t>(world.rank())]),
        sent_(messages_at_once * message_bytes),
        received_(messages_at_once * message_bytes) {}

  Links all() {
    Links links;
    for (int node = 0; node < topology_.num_nodes(); ++node) {
      if (topology_.ranks_on(node) < 2) continue;
      links.inside = speed({rank_at(node, 0), rank_at(node, 1)}, inside_ring(), fewest_above_one());
      break;
    }
    if (topology_.num_nodes() > 1) {
      int fewest = topology_.ranks_on(0);
      for (int n = 1; n < topology_.num_nodes(); ++n) {
        fewest = std::min(fewest, topology_.ranks_on(n));
      }
      links.between = speed({rank_at(0, 0), rank_at(1, 0)}, node_ring(fewest), fewest);
    }
    return links;
  }

 private:
  int rank_at(int node, int local) const {
    for (int rank = 0; rank < topology_.num_ranks(); ++rank) {
      const auto r = static_cast<std::size_t>(rank);
      if (topology_.node_of[r] == node && topology_.local_rank_of[r] == local) return rank;
    }
    return nobody;
  }

  /// Each rank of a node sends to the next one there.
  Partners inside_ring() const {
    const int here = topology_.ranks_on(node_);
    if (here < 2) return {};
    return {rank_at(node_, (local_ + 1) % here), rank_at(node_, (local_ + here - 1) % here)};
  }

  /// Ranks on the smallest node that has several: with the slowest node's time, a lower bound.
  int fewest_above_one() const {
    int fewest = topology_.num_ranks();
    for (int node = 0; node < topology_.num_nodes(); ++node) {
      const int here = topology_.ranks_on(node);
      if (here > 1) fewest = std::min(fewest, here);
    }
    return fewest;
  }

  /// The first `ranks` of every node send to the same ones of the next node.
  Partners node_ring(int ranks) const {
    const int nodes = topology_.num_nodes();
    if (local_ >= ranks) return {};
    return {rank_at((node_ + 1) % nodes, local_), rank_at((node_ + nodes - 1) % nodes, local_)};
  }

  LinkSpeed speed(std::array<int, 2> pair, Partners together, int ranks_together) {
    Partners alone;
    if (world_.rank() == pair[0]) alone.to = pair[1];
    if (world_.rank() == pair[1]) alone.from = pair[0];
    LinkSpeed result;
    result.latency_s = latency(pair);
    result.pair_bytes_per_s = bytes_per_s(alone);
    result.node_bytes_per_s = bytes_per_s(together) * ranks_together;
    return result;
  }

  /// Half the median round trip, from the first of the pair to all.
  double latency(std::array<int, 2> pair) {
    const bool first = world_.rank() == pair[0];
    std::vector<double> times;
    world_.barrier();
    if (first || world_.rank() == pair[1]) {
      const int peer = first ? pair[1] : pair[0];
      double value = 0;
      const auto send = [&] {
        check(MPI_Send(&value, 1, MPI_DOUBLE, peer, tag, world_.raw()), "MPI_Send");
      };
      const auto receive = [&] {
        check(MPI_Recv(&value, 1, MPI_DOUBLE, peer, tag, world_.raw(), MPI_STATUS_IGNORE),
              "MPI_Recv");
      };
      for (int trip = -warm_up_trips; trip < trips; ++trip) {
        const double begin = now_seconds();
        if (first) send();
        receive();
        if (!first) send();
        if (trip >= 0) times.push_back(now_seconds() - begin);
      }
    }
    if (!first) times.clear();
    std::sort(times.begin(), times.end());
    double result = times.empty() ? 0 : times[times.size() / 2] / 2;
    world_.allreduce(std::span(&result, 1), Communicator::Reduce::max);
    return result;
  }

  /// Seconds of the slowest rank for so many rounds of messages to its partner.
  double seconds_of(Partners partners, int rounds) {
    world_.barrier();
    const double begin = now_seconds();
    for (int round = 0; round < rounds; ++round) {
      std::array<MPI_Request, std::size_t{2} * messages_at_once> requests;
      for (std::size_t i = 0; i < messages_at_once; ++i) {
        check(MPI_Irecv(received_.data() + i * message_bytes, message_bytes, MPI_BYTE,
                        partners.from, tag, world_.raw(), &requests[i]),
              "MPI_Irecv");
        check(MPI_Isend(sent_.data() + i * message_bytes, message_bytes, MPI_BYTE, partners.to, tag,
                        world_.raw(), &requests[messages_at_once + i]),
              "MPI_Isend");
      }
      check(MPI_Waitall(static_cast<int>(requests.size()), requests.data(), MPI_STATUSES_IGNORE),
            "MPI_Waitall");
    }
    double seconds = now_seconds() - begin;  // a receiver's end: a sender's is too early
    world_.allreduce(std::span(&seconds, 1), Communicator::Reduce::max);
    return seconds;
  }

  double bytes_per_s(Partners partners) {
    seconds_of(partners, 1);  // connects
    // A shaper's bucket, full at first, is empty after this.
    const double one = seconds_of(partners, 1);
    const int rounds = static_cast<int>(std::clamp(enough_seconds / one, 1.0, 1.0 * most_rounds));
    const double bytes = static_cast<double>(messages_at_once * message_bytes) * rounds;
    double least = seconds_of(partners, rounds);
    for (int i = 1; i < measurements; ++i) {
      least = std::min(least, seconds_of(partners, rounds));
    }
    return bytes / least;
  }

  const Communicator& world_;
  const Topology& topology_;
  int node_;
  int local_;
  std::vector<std::byte> sent_;
  std::vector<std::byte> received_;
};

}  // namespace

Links measure_links(const Communicator& world, const Topology& topology) {
  const Waiting waiting("measuring links");
  return Measurement(world, topology).all();
}

}  // namespace atl::comm
