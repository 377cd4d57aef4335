#include "comm/pair_rates.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <map>
#include <set>
#include <utility>

#include "comm/communicator.hpp"
#include "comm/side_channel.hpp"
#include "comm/watchdog.hpp"
#include "compute/clock.hpp"

namespace atl::comm {

namespace {

constexpr int tag = 14;
constexpr std::size_t message_bytes = std::size_t{256} << 10;
constexpr int trips = 16;
constexpr double enough_seconds = 0.04;  // of one measurement
constexpr int measurements = 3;          // the best counts
constexpr int most_messages = 256;
constexpr int tries_of_slow_pairs = 3;
constexpr double suspicious = 0.75;  // of the median
constexpr double udp_patience_s = 2;
constexpr int udp_wait_ms = 50;

using Pairs = std::vector<std::pair<int, int>>;

/// Which pairs of nodes are measured, in rounds: those of a round at once, each node in one.
std::vector<Pairs> rounds_of(int nodes) {
  std::vector<Pairs> rounds;
  if (nodes <= most_nodes_for_all_pairs) {
    for (int a = 0; a < nodes; ++a) {
      for (int b = a + 1; b < nodes; ++b) rounds.push_back({{a, b}});
    }
    return rounds;
  }
  rounds.resize(3);
  for (int a = 0; a + 1 < nodes; ++a)
    rounds[static_cast<std::size_t>(a % 2)].emplace_back(a, a + 1);
  rounds[2].emplace_back(0, nodes - 1);
  return rounds;
}

std::vector<int> first_ranks(const Topology& topology) {
  std::vector<int> first(static_cast<std::size_t>(topology.num_nodes()), -1);
  for (int rank = topology.num_ranks() - 1; rank >= 0; --rank) {
    first[static_cast<std::size_t>(topology.node_of[static_cast<std::size_t>(rank)])] = rank;
  }
  return first;
}

class Exchange {
 public:
  Exchange(const Communicator& world, int partner)
      : world_(world), partner_(partner), sent_(message_bytes), received_(message_bytes) {}

  /// Seconds in which `messages` of `bytes` went each way.
  double seconds(int messages, std::size_t bytes) {
    const double begin = now_seconds();
    for (int i = 0; i < messages; ++i) {
      std::array<MPI_Request, 2> requests{};
      const int count = to_int(bytes, "bytes");
      check(MPI_Irecv(received_.data(), count, MPI_BYTE, partner_, tag, world_.raw(), &requests[0]),
            "MPI_Irecv");
      check(MPI_Isend(sent_.data(), count, MPI_BYTE, partner_, tag, world_.raw(), &requests[1]),
            "MPI_Isend");
      check(MPI_Waitall(2, requests.data(), MPI_STATUSES_IGNORE), "MPI_Waitall");
    }
    return now_seconds() - begin;
  }
  /// The slower of both ends' figures, so that they agree on how many messages there are.
  double agreed(double value) {
    double other = 0;
    check(MPI_Sendrecv(&value, 1, MPI_DOUBLE, partner_, tag, &other, 1, MPI_DOUBLE, partner_, tag,
                       world_.raw(), MPI_STATUS_IGNORE),
          "MPI_Sendrecv");
    return std::max(value, other);
  }
  PairRate measure() {
    PairRate rate;
    seconds(1, message_bytes);  // connects
    rate.round_trip_s = agreed(seconds(trips, sizeof(double)) / trips);
    const double one = agreed(seconds(1, message_bytes));
    const int messages = std::clamp(static_cast<int>(enough_seconds / one), 1, most_messages);
    double least = agreed(seconds(messages, message_bytes));
    for (int i = 1; i < measurements; ++i) {
      least = std::min(least, agreed(seconds(messages, message_bytes)));
    }
    rate.bytes_per_s = static_cast<double>(message_bytes) * messages / least;
    return rate;
  }

 private:
  const Communicator& world_;
  int partner_;
  std::vector<std::byte> sent_, received_;
};

/// This rank's partner among the pairs; -1: none.
int partner_in(const Pairs& pairs, const std::vector<int>& first, int rank) {
  for (const auto& [a, b] : pairs) {
    const int one = first[static_cast<std::size_t>(a)];
    const int other = first[static_cast<std::size_t>(b)];
    if (rank == one) return other;
    if (rank == other) return one;
  }
  return -1;
}

/// Measures these pairs at once; keeps the best of each.
void measure_round(const Communicator& world, const std::vector<int>& first, const Pairs& pairs,
                   std::map<std::pair<int, int>, PairRate>& rates) {
  PairRate mine;
  const int partner = partner_in(pairs, first, world.rank());
  world.barrier();
  if (partner >= 0) mine = Exchange(world, partner).measure();
  const std::vector<PairRate> all = world.allgather(mine);
  for (const auto& nodes : pairs) {
    const auto [a, b] = nodes;
    const PairRate& found = all[static_cast<std::size_t>(first[static_cast<std::size_t>(a)])];
    PairRate& best = rates.try_emplace(nodes, PairRate{a, b, 0, found.round_trip_s}).first->second;
    best.bytes_per_s = std::max(best.bytes_per_s, found.bytes_per_s);
    best.round_trip_s = std::min(best.round_trip_s, found.round_trip_s);
  }
}

}  // namespace

std::vector<PairRate> pairs_of_nodes(const Topology& topology) {
  std::vector<PairRate> list;
  for (const Pairs& pairs : rounds_of(topology.num_nodes())) {
    for (const auto& [a, b] : pairs) list.push_back({a, b, 0, 0});
  }
  return list;
}

std::vector<PairRate> measure_pairs(const Communicator& world, const Topology& topology) {
  const Waiting waiting("measuring pairs of nodes");
  const std::vector<int> first = first_ranks(topology);
  const std::vector<Pairs> rounds = rounds_of(topology.num_nodes());
  std::map<std::pair<int, int>, PairRate> rates;
  for (const Pairs& pairs : rounds) measure_round(world, first, pairs, rates);
  // What others did meanwhile may have made a pair look slow: such pairs have more tries.
  for (int again = 0; again < tries_of_slow_pairs; ++again) {
    std::vector<double> all;
    for (const auto& [nodes, rate] : rates) all.push_back(rate.bytes_per_s);
    std::sort(all.begin(), all.end());
    for (Pairs pairs : rounds) {
      std::erase_if(pairs, [&](const std::pair<int, int>& nodes) {
        return rates.at(nodes).bytes_per_s >= suspicious * all[all.size() / 2];
      });
      if (!pairs.empty()) measure_round(world, first, pairs, rates);
    }
  }
  std::vector<PairRate> list;
  for (const auto& [nodes, rate] : rates) list.push_back(rate);
  return list;
}

std::vector<int> unheard_by_udp(const Communicator& world, const Topology& topology) {
  const std::vector<int> first = first_ranks(topology);
  const int rank = world.rank();
  const int node = topology.node_of[static_cast<std::size_t>(rank)];
  std::set<int> unheard;  // ranks
  if (first[static_cast<std::size_t>(node)] == rank) {
    for (const Pairs& pairs : rounds_of(topology.num_nodes())) {
      const int partner = partner_in(pairs, first, rank);
      if (partner >= 0) unheard.insert(partner);
    }
  }
  const std::set<int> partners = unheard;
  SideChannel channel;
  channel.connect(rank, world.allgather(channel.address()), 0x61746f6c6c63686bULL);
  const RankState state;
  const double begin = now_seconds();
  // Each goes on answering until all have heard all, or have lost patience.
  for (std::int64_t waiting = 1; waiting > 0;) {
    for (const int partner : partners) channel.send(partner, SideChannel::Kind::hello, state);
    SideChannel::Message message;
    while (channel.receive(message, partners.empty() ? 0 : udp_wait_ms))
      unheard.erase(message.from);
    waiting = unheard.empty() || now_seconds() - begin > udp_patience_s ? 0 : 1;
    world.allreduce(std::span(&waiting, 1), Communicator::Reduce::max);
  }
  std::vector<int> nodes;
  for (const int other : unheard) {
    nodes.push_back(topology.node_of[static_cast<std::size_t>(other)]);
  }
  return nodes;
}

}  // namespace atl::comm
