#pragma once
// What the machine itself can do, measured by all ranks at once: GEMMs, reading memory, and a plain
// stream of bytes over the links. The ceilings to which a run is held.

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "comm/communicator.hpp"
#include "comm/lane.hpp"
#include "comm/topology.hpp"
#include "compute/clock.hpp"
#include "compute/cpu/gemm.hpp"

namespace atl::perf {

inline double over_ranks(const comm::Communicator& world, double value,
                         comm::Communicator::Reduce op) {
  world.allreduce(std::span(&value, 1), op);
  return value;
}

/// Seconds that the cores of this machine have spent since it started: in all, and idle. Zero where
/// the kernel does not tell.
struct CoreSeconds {
  double all = 0, idle = 0;

  static CoreSeconds now() {
    std::ifstream file("/proc/stat");
    std::string word;
    std::array<double, 8> ticks{};  // user, nice, system, idle, iowait, irq, softirq, steal
    file >> word;
    for (double& t : ticks) file >> t;
    if (!file) return {};
    const auto hz = static_cast<double>(sysconf(_SC_CLK_TCK));
    return {std::accumulate(ticks.begin(), ticks.end(), 0.0) / hz, (ticks[3] + ticks[4]) / hz};
  }
  /// Share of the cores' time between `before` and this that somebody used. The kernel rounds each
  /// kind of time to ticks by itself, so over few ticks they may not add up.
  double busy_since(const CoreSeconds& before) const {
    if (all <= before.all) return 0;
    return std::clamp(1 - (idle - before.idle) / (all - before.all), 0.0, 1.0);
  }
};

struct Measured {
  double seconds = 0;     ///< of the slowest rank
  double cores_busy = 0;  ///< share of this machine's cores meanwhile, by whomever
};

/// FLOP/s of one rank's BF16 GEMMs [rows, k] x [k, n] while all ranks do the same; the best of
/// several tries on the slowest rank. Throws Error if a result is wrong.
inline double gemm_rate(const comm::Communicator& world, int k, int n) {
  const auto gemm = compute::make_gemm(DType::bfloat16, 1);
  constexpr std::uint16_t one = 0x3f80;
  const std::vector<std::uint16_t> weight(static_cast<std::size_t>(k) * static_cast<std::size_t>(n),
                                          one);
  const auto packed = gemm->pack(weight.data(), n, k);
  gemm->prepare(packed, compute::Finish::float32);
  const std::vector<std::uint16_t> a(
      static_cast<std::size_t>(compute::tile_rows) * static_cast<std::size_t>(k), one);
  std::vector<float> c(static_cast<std::size_t>(compute::tile_rows) * static_cast<std::size_t>(n));
  const double flops = 2.0 * compute::tile_rows * k * n;
  const int runs = std::max(1, static_cast<int>(2e9 / flops));
  double best = 0;
  for (int i = 0; i < 4; ++i) {  // the first warms up
    world.barrier();
    const double begin = now_seconds();
    for (int r = 0; r < runs; ++r) {
      gemm->run(packed, a.data(), compute::tile_rows, c.data(), compute::Finish::float32);
    }
    if (i > 0) best = std::max(best, runs * flops / (now_seconds() - begin));
  }
  require(std::all_of(c.begin(), c.end(), [k](float x) { return x == static_cast<float>(k); }),
          "a GEMM of ones did not give {} everywhere", k);
  return over_ranks(world, best, comm::Communicator::Reduce::min);
}

/// Bytes per second at which each rank reads `bytes` of memory while all others do the same.
inline double memory_rate(const comm::Communicator& world, std::size_t bytes) {
  const std::vector<std::uint64_t> words(bytes / sizeof(std::uint64_t), 1);
  double best = 0;
  for (int i = 0; i < 3; ++i) {
    world.barrier();
    const double begin = now_seconds();
    std::uint64_t sum = 0;
    for (const std::uint64_t word : words) sum += word;
    const double seconds = now_seconds() - begin;
    require(sum == words.size(), "the memory benchmark read {} instead of {}", sum, words.size());
    best = std::max(best, static_cast<double>(bytes) / seconds);
  }
  return over_ranks(world, best, comm::Communicator::Reduce::min);
}

/// Bytes per second that leave one node (or, on one node, one rank) when every rank streams
/// `megabytes` to its place on the next node and receives as much. A ceiling, so the best
/// of `tries` after one that warms up.
inline double stream_rate(const comm::Communicator& world, const comm::Topology& topology,
                          int megabytes, int tries) {
  const int size = world.size();
  if (size == 1) return 0;
  // The next rank of another node in a ring over all ranks, or just the next rank.
  const int step = topology.num_nodes() > 1 ? topology.ranks_on(0) : 1;
  constexpr std::size_t row_bytes = 65536;
  const int rows = megabytes * 16;
  const auto bytes = static_cast<std::size_t>(rows) * row_bytes;
  std::vector<std::byte> out(bytes, static_cast<std::byte>(world.rank() % 251));
  std::vector<std::byte> in(bytes);
  comm::LaneOptions options;
  options.transport = comm::TransportKind::pairwise;
  options.row_bytes = row_bytes;
  comm::Lane lane(world, options);
  double best = 0;
  const int from = (world.rank() + size - step) % size;
  comm::RowMove move(size);
  move.send_counts[static_cast<std::size_t>((world.rank() + step) % size)] = rows;
  move.recv_counts[static_cast<std::size_t>(from)] = rows;
  for (int i = 0; i <= tries; ++i) {  // the first warms up
    world.barrier();
    const double begin = now_seconds();
    lane.start(move, out.data(), in.data());
    while (!lane.test()) sched_yield();
    const double seconds =
        over_ranks(world, now_seconds() - begin, comm::Communicator::Reduce::max);
    if (i > 0) best = std::max(best, static_cast<double>(bytes) / seconds);
  }
  require(in.front() == static_cast<std::byte>(from % 251) && in.front() == in.back(),
          "the stream from rank {} arrived altered", from);
  const int senders = topology.num_nodes() > 1 ? topology.ranks_on(0) : 1;
  return best * senders;
}

}  // namespace atl::perf
