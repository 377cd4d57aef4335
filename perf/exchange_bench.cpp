// One exchange between all ranks, from 1 KiB to 16 MiB for each pair, with the overlap that the OSU
// micro-benchmarks define:
//
//   latency   post and wait for the end, nothing else to do; the slowest rank, mean of a series
//   overlap   post, compute for as long as the latency, wait: how much of the exchange was hidden,
//             100 (1 - (total - computation) / latency), at least 0
//
// for Atoll's exchange over both transports and its whole dispatch (counters first, then rows),
// where as in the program a second thread computes while this one polls, and, in the same run, for
// the loop that osu_ialltoallv is: MPI_Ialltoallv, the computation on the same thread, MPI_Wait.
//
//   mpirun -n 4 --oversubscribe build/cpu/perf/exchange_bench
//   mpirun -n 2 build/cpu/perf/exchange_bench --tiny      seconds, for the tests

#include <mpi.h>
#include <sched.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <numeric>
#include <thread>

#include "app/run/chunk_moves.hpp"
#include "comm/lane.hpp"
#include "compute/clock.hpp"
#include "perf/bench_main.hpp"
#include "perf/machine.hpp"

namespace atl::perf {
namespace {

using Reduce = comm::Communicator::Reduce;

constexpr std::size_t row_bytes = 1024;

/// Arithmetic that no compiler removes.
void compute(std::int64_t units) {
  volatile double value = 1.0;
  for (std::int64_t i = 0; i < units; ++i) value = value * 0.999 + 0.5;
}

/// Units of arithmetic that a rank does in a second while all ranks do the same.
double compute_rate(const comm::Communicator& world) {
  constexpr std::int64_t units = 20'000'000;
  world.barrier();
  const double begin = now_seconds();
  compute(units);
  return over_ranks(world, static_cast<double>(units) / (now_seconds() - begin), Reduce::min);
}

/// One way to exchange `bytes` with every other rank: start it, then ask whether it is done.
struct Method {
  std::function<void()> start;
  std::function<bool()> done;
  bool polls_beside_arithmetic;  // another thread computes
  std::function<void()> check;   // throws Error if a byte is wrong
};

struct Buffers {
  Buffers(const comm::Communicator& world, std::size_t bytes)
      : size(world.size()),
        rank(world.rank()),
        rows(static_cast<int>(bytes / row_bytes)),
        out(bytes * static_cast<std::size_t>(size)),
        in(out.size(), std::byte{0xee}),
        move(size) {
    for (int peer = 0; peer < size; ++peer) {
      const auto p = static_cast<std::size_t>(peer);
      std::fill_n(out.begin() + static_cast<std::ptrdiff_t>(p * bytes), bytes, mark(rank, peer));
      move.send_offsets[p] = move.recv_offsets[p] = peer * rows;
      move.send_counts[p] = move.recv_counts[p] = peer == rank ? 0 : rows;
    }
  }
  static std::byte mark(int from, int to) { return static_cast<std::byte>(1 + from * 7 + to * 3); }

  void check() {
    const std::size_t bytes = in.size() / static_cast<std::size_t>(size);
    for (int peer = 0; peer < size; ++peer) {
      if (peer == rank) continue;
      const auto first = in.begin() + static_cast<std::ptrdiff_t>(bytes) * peer;
      require(std::all_of(first, first + static_cast<std::ptrdiff_t>(bytes),
                          [&](std::byte b) { return b == mark(peer, rank); }),
              "what rank {} sent to rank {} arrived altered", peer, rank);
    }
    std::fill(in.begin(), in.end(), std::byte{0xee});
  }

  int size, rank, rows;
  std::vector<std::byte> out, in;
  comm::RowMove move;
};

comm::LaneOptions lane_of(comm::TransportKind kind, std::size_t first_message_bytes) {
  comm::LaneOptions options;
  options.transport = kind;
  options.row_bytes = row_bytes;
  options.first_message_bytes = first_message_bytes;
  return options;
}

Method exchange_method(const comm::Communicator& world, comm::TransportKind kind,
                       std::size_t bytes) {
  struct State {
    State(const comm::Communicator& w, comm::TransportKind k, std::size_t b)
        : buffers(w, b), lane(w, lane_of(k, 0)) {}
    Buffers buffers;
    comm::Lane lane;
  };
  const auto s = std::make_shared<State>(world, kind, bytes);
  return {[s] { s->lane.start(s->buffers.move, s->buffers.out.data(), s->buffers.in.data()); },
          [s] { return s->lane.test(); }, true, [s] { s->buffers.check(); }};
}

/// As the program does it: counters, and rows once they are there (or with them, where small).
Method dispatch_method(const comm::Communicator& world, std::size_t bytes) {
  struct State {
    State(const comm::Communicator& w, std::size_t b)
        : buffers(w, b), lane(w, lane_of(comm::TransportKind::ialltoallv, first_message_bytes)) {
      for (int peer = 0; peer < w.size(); ++peer) {
        lane.counters().to(peer)[0] = buffers.rows;
      }
    }
    Buffers buffers;
    comm::Lane lane;
    bool counting = false;
  };
  const auto s = std::make_shared<State>(world, bytes);
  return {[s] {
            s->lane.counters().start(s->buffers.move, s->buffers.out.data());
            s->counting = true;
          },
          [s] {
            if (s->counting) {
              if (!s->lane.counters().test()) return false;
              s->counting = false;
              s->lane.start_told(s->buffers.move, s->buffers.out.data(), s->buffers.in.data());
            }
            return s->lane.test();
          },
          true, [s] { s->buffers.check(); }};
}

Method plain_method(const comm::Communicator& world, std::size_t bytes) {
  struct State {
    State(const comm::Communicator& w, std::size_t b) : buffers(w, b), comm(w.duplicate()) {
      const auto& move = buffers.move;
      for (std::size_t p = 0; p < move.send_counts.size(); ++p) {
        const int count = move.send_counts[p] * static_cast<int>(row_bytes);
        counts.push_back(count);
        offsets.push_back(move.send_offsets[p] * static_cast<int>(row_bytes));
      }
    }
    Buffers buffers;
    comm::Communicator comm;
    std::vector<int> counts, offsets;
    MPI_Request request = MPI_REQUEST_NULL;
  };
  const auto s = std::make_shared<State>(world, bytes);
  return {[s] {
            comm::check(MPI_Ialltoallv(s->buffers.out.data(), s->counts.data(), s->offsets.data(),
                                       MPI_BYTE, s->buffers.in.data(), s->counts.data(),
                                       s->offsets.data(), MPI_BYTE, s->comm.raw(), &s->request),
                        "MPI_Ialltoallv");
          },
          [s] {
            comm::check(MPI_Wait(&s->request, MPI_STATUS_IGNORE), "MPI_Wait");
            return true;
          },
          false, [s] { s->buffers.check(); }};
}

/// Seconds of one exchange with nothing else to do.
double latency(const comm::Communicator& world, const Method& method, int count) {
  double sum = 0;
  for (int i = 0; i < count; ++i) {
    world.barrier();
    const double begin = now_seconds();
    method.start();
    while (!method.done()) sched_yield();
    sum += now_seconds() - begin;
  }
  return over_ranks(world, sum / count, Reduce::max);
}

/// Seconds of one exchange beside `units` of arithmetic.
double beside_arithmetic(const comm::Communicator& world, const Method& method, int count,
                         std::int64_t units) {
  constexpr auto between_polls = std::chrono::microseconds(50);
  double sum = 0;
  for (int i = 0; i < count; ++i) {
    world.barrier();
    const double begin = now_seconds();
    method.start();
    if (method.polls_beside_arithmetic) {
      std::thread arithmetic([units] { compute(units); });
      while (!method.done()) std::this_thread::sleep_for(between_polls);
      arithmetic.join();
    } else {
      compute(units);
      method.done();
    }
    sum += now_seconds() - begin;
  }
  return over_ranks(world, sum / count, Reduce::max);
}

/// Seconds of the arithmetic alone.
double arithmetic_alone(const comm::Communicator& world, std::int64_t units) {
  world.barrier();
  const double begin = now_seconds();
  compute(units);
  return over_ranks(world, now_seconds() - begin, Reduce::max);
}

void add(const comm::Communicator& world, const char* name, std::size_t bytes, bool tiny,
         const std::function<Method(std::size_t)>& make) {
  const std::string full = fmt::format("{}/bytes:{}", name, bytes);
  benchmark::RegisterBenchmark(
      full.c_str(),
      [&world, bytes, tiny, make](benchmark::State& state) {
        const Method method = make(bytes);
        latency(world, method, 2);  // warms up
        method.check();
        const int count = tiny ? 2 : bytes <= (64U << 10) ? 50 : bytes <= (1U << 20) ? 10 : 3;
        for (auto _ : state) {
          const double alone = latency(world, method, count);
          const auto units = static_cast<std::int64_t>(alone * compute_rate(world));
          const double work = arithmetic_alone(world, units);
          const double total = beside_arithmetic(world, method, count, units);
          state.SetIterationTime(alone);
          state.counters["value_overlap"] = 100 * std::max(0.0, 1 - (total - work) / alone);
          state.counters["value_MB/s_per_rank"] =
              static_cast<double>(bytes) * (world.size() - 1) / alone / 1e6;
        }
      })
      ->Iterations(1)
      ->Repetitions(tiny ? 1 : 3)
      ->UseManualTime()
      ->Unit(benchmark::kMicrosecond);
}

void add_all(const comm::Communicator& world, bool tiny) {
  const std::size_t largest = tiny ? 64U << 10 : 16U << 20;
  for (std::size_t bytes = 1024; bytes <= largest; bytes *= tiny ? 64 : 4) {
    add(world, "ialltoallv", bytes, tiny, [&world](std::size_t b) {
      return exchange_method(world, comm::TransportKind::ialltoallv, b);
    });
    add(world, "pairwise", bytes, tiny, [&world](std::size_t b) {
      return exchange_method(world, comm::TransportKind::pairwise, b);
    });
    add(world, "dispatch", bytes, tiny,
        [&world](std::size_t b) { return dispatch_method(world, b); });
    add(world, "osu", bytes, tiny, [&world](std::size_t b) { return plain_method(world, b); });
  }
}

}  // namespace
}  // namespace atl::perf

int main(int argc, char** argv) {
  return atl::perf::bench_main("exchange_bench", argc, argv, atl::perf::add_all);
}
