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
// gpu_exchange_bench is the same for rows in a device's memory, to 64 MiB: latency by each
// transport that the MPI library can, against a copy inside the device's memory.
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
#include <span>
#include <thread>

#include "app/run/chunk_moves.hpp"
#include "comm/lane.hpp"
#include "comm/mpi_library.hpp"
#include "compute/clock.hpp"
#include "perf/bench_main.hpp"
#include "perf/machine.hpp"
#include "perf/rows_place.hpp"
#include "perf/table_line.hpp"

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

/// Rows on their way from or to other ranks, in host memory or a device's.
class RowBuffer {
 public:
  RowBuffer(std::size_t bytes, compute::DeviceMemory* device) : device_(device) {
    if (device_ == nullptr) {
      rows_.resize(bytes);
      host_ = rows_;
      return;
    }
    on_device_ = device_->allocate(bytes);
    pinned_ = device_->allocate_host(bytes);
    host_ = {pinned_.get(), bytes};
  }
  /// What MPI gets.
  std::byte* data() const { return device_ == nullptr ? host_.data() : on_device_.get(); }
  std::span<std::byte> host() const { return host_; }
  void to_device() const {
    if (device_ != nullptr) wait(device_->to_device(data(), host_.data(), host_.size()));
  }
  void to_host() const {
    if (device_ != nullptr) wait(device_->to_host(host_.data(), data(), host_.size()));
  }

 private:
  void wait(compute::DeviceMemory::Copy copy) const {
    while (!device_->copied(copy)) sched_yield();
  }

  compute::DeviceMemory* device_;
  std::vector<std::byte> rows_;
  compute::DeviceMemory::Bytes on_device_, pinned_;
  std::span<std::byte> host_;
};

struct Buffers {
  Buffers(const comm::Communicator& world, std::size_t bytes,
          compute::DeviceMemory* device = nullptr)
      : size(world.size()),
        rank(world.rank()),
        rows(static_cast<int>(bytes / row_bytes)),
        out(bytes * static_cast<std::size_t>(size), device),
        in(bytes * static_cast<std::size_t>(size), device),
        move(size) {
    for (int peer = 0; peer < size; ++peer) {
      const auto p = static_cast<std::size_t>(peer);
      std::fill_n(out.host().begin() + static_cast<std::ptrdiff_t>(p * bytes), bytes,
                  mark(rank, peer));
      move.send_offsets[p] = move.recv_offsets[p] = peer * rows;
      move.send_counts[p] = move.recv_counts[p] = peer == rank ? 0 : rows;
    }
    out.to_device();
    forget();
  }
  static std::byte mark(int from, int to) { return static_cast<std::byte>(1 + from * 7 + to * 3); }

  void check() {
    in.to_host();
    const std::size_t bytes = in.host().size() / static_cast<std::size_t>(size);
    for (int peer = 0; peer < size; ++peer) {
      if (peer == rank) continue;
      const auto from = in.host().subspan(static_cast<std::size_t>(peer) * bytes, bytes);
      require(
          std::all_of(from.begin(), from.end(), [&](std::byte b) { return b == mark(peer, rank); }),
          "what rank {} sent to rank {} arrived altered", peer, rank);
    }
    forget();
  }

  int size, rank, rows;
  RowBuffer out, in;
  comm::RowMove move;

 private:
  void forget() const {
    std::fill(in.host().begin(), in.host().end(), std::byte{0xee});
    in.to_device();
  }
};

comm::LaneOptions lane_of(comm::TransportKind kind, std::size_t first_message_bytes,
                          compute::DeviceMemory* device = nullptr) {
  comm::LaneOptions options;
  options.device = device;
  options.transport = kind;
  options.row_bytes = row_bytes;
  options.first_message_bytes = first_message_bytes;
  return options;
}

Method exchange_method(const comm::Communicator& world, comm::TransportKind kind, std::size_t bytes,
                       compute::DeviceMemory* device = nullptr) {
  struct State {
    State(const comm::Communicator& w, comm::TransportKind k, std::size_t b,
          compute::DeviceMemory* d)
        : buffers(w, b, d), lane(w, lane_of(k, 0, d)) {}
    Buffers buffers;
    comm::Lane lane;
  };
  const auto s = std::make_shared<State>(world, kind, bytes, device);
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

int repetitions_of(std::size_t bytes, bool tiny) {
  return tiny ? 2 : bytes <= (64U << 10) ? 50 : bytes <= (1U << 20) ? 10 : 3;
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
        const int count = repetitions_of(bytes, tiny);
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

/// Latency of rows that lie on a device, which all ranks here share.
void add_on_device(const comm::Communicator& world, bool tiny, const RowsPlace& place) {
  const bool direct =
      over_ranks(world, comm::mpi_library::claims_device_memory() ? 1 : 0, Reduce::min) > 0;
  if (world.rank() == 0 && !direct) {
    tell_line("NOT RUN", "exchange on device pointers", "-", "-", "-",
              fmt::format("{} says that it is not CUDA-aware", comm::mpi_library::version()));
  }
  const double rate = over_ranks(world, place.copy_rate(tiny), Reduce::min);
  const std::size_t largest = tiny ? 64U << 10 : 64U << 20;
  for (const comm::TransportInfo& transport : comm::transports) {
    if (!transport.staged && !direct) continue;
    for (std::size_t bytes = 1024; bytes <= largest; bytes *= tiny ? 64 : 4) {
      const std::string name = fmt::format("exchange/{}/bytes:{}", transport.name, bytes);
      benchmark::RegisterBenchmark(
          name.c_str(),
          [&world, &place, kind = transport.kind, bytes, tiny, rate,
           name](benchmark::State& state) {
            const Method method = exchange_method(world, kind, bytes, place.memory.get());
            latency(world, method, 2);  // warms up
            method.check();
            double seconds = 0;
            for (auto _ : state) {
              seconds = latency(world, method, repetitions_of(bytes, tiny));
              state.SetIterationTime(seconds);
            }
            method.check();
            const double moved = static_cast<double>(bytes) * (world.size() - 1);
            if (world.rank() != 0) return;
            // Each rank's rows are read once and written once.
            tell_time(name, seconds, 2 * moved * world.size() / rate,
                      fmt::format("{:.3g} GB/s a rank of {}", moved / seconds / 1e9, world.size()));
          })
          ->Iterations(1)
          ->UseManualTime()
          ->Unit(benchmark::kMicrosecond);
    }
  }
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
  try {
    const atl::perf::RowsPlace place = atl::perf::open_rows_place();
    if (!place.why_none.empty()) {
      fmt::print("SKIPPED: {}\n", place.why_none);
      return 77;
    }
    return atl::perf::bench_main("exchange_bench", argc, argv,
                                 [&](const atl::comm::Communicator& world, bool tiny) {
                                   if (place.memory == nullptr)
                                     return atl::perf::add_all(world, tiny);
                                   atl::perf::add_on_device(world, tiny, place);
                                 });
  } catch (const std::exception& error) {
    fmt::print(stderr, "exchange_bench: {}\n", error.what());
    return 1;
  }
}
