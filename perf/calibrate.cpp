// What ranks, links and hosts of this machine do, as a machine file for `atoll plan --cluster`;
// about a minute. Every rank measures while all others do the same, and the slowest counts.
//
//   mpirun -n 16 build/cpu/perf/calibrate machine.json [--quick]

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <ctime>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "app/build_info.hpp"
#include "app/run/machine_file.hpp"
#include "app/run/processor.hpp"
#include "comm/communicator.hpp"
#include "comm/counters.hpp"
#include "comm/links.hpp"
#include "io/json_shown.hpp"
#include "io/text_file.hpp"
#include "perf/machine.hpp"
#include "perf/mpi_program.hpp"

namespace atl::perf {
namespace {

using nlohmann::ordered_json;
using Reduce = comm::Communicator::Reduce;

/// Median seconds of `run`, of the slowest rank, all ranks at once.
template <class Run>
double median_seconds(const comm::Communicator& world, int tries, const Run& run) {
  std::vector<double> seconds;
  for (int i = 0; i <= tries; ++i) {  // the first warms up
    world.barrier();
    const double begin = now_seconds();
    run();
    const double mine = now_seconds() - begin;
    const double slowest = over_ranks(world, mine, Reduce::max);
    if (i > 0) seconds.push_back(slowest);
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

/// A ladder of rows for one shape of matrix.
ordered_json ladder(const comm::Communicator& world, int depth, int columns, bool quick) {
  const auto gemm = compute::make_gemm(DType::bfloat16, 1);
  constexpr std::uint16_t one = 0x3f80;
  const std::vector<std::uint16_t> weight(
      static_cast<std::size_t>(depth) * static_cast<std::size_t>(columns), one);
  const auto packed = gemm->pack(weight.data(), columns, depth);
  gemm->prepare(packed, compute::Finish::float32);
  std::vector<int> rows = {1, 8, 32, 128};
  if (!quick) rows = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512};
  const auto most = static_cast<std::size_t>(compute::whole_tiles(rows.back()));
  const std::vector<std::uint16_t> a(most * static_cast<std::size_t>(depth), one);
  std::vector<float> c(most * static_cast<std::size_t>(columns));
  ordered_json entry = {{"depth", depth}, {"columns", columns}, {"rows", rows}};
  double before = 0;
  for (const int count : rows) {
    const double flops = 2.0 * count * depth * columns;
    const int runs = std::max(1, static_cast<int>((quick ? 1e7 : 2e8) / flops));
    double seconds =
        median_seconds(world, 3,
                       [&] {
                         for (int r = 0; r < runs; ++r) {
                           gemm->run(packed, a.data(), count, c.data(), compute::Finish::float32);
                         }
                       }) /
        runs;
    seconds = std::max(seconds, before);  // more rows never take less
    before = seconds;
    entry["seconds"].push_back(seconds);
  }
  require(c.front() == static_cast<float>(depth), "a GEMM of ones did not give {}", depth);
  return entry;
}

/// Bytes per second of rows that are copied, read and written counted.
double copy_rate(const comm::Communicator& world, std::size_t bytes) {
  const std::vector<std::byte> from(bytes, std::byte{1});
  std::vector<std::byte> to(bytes);
  const double seconds =
      median_seconds(world, 3, [&] { std::memcpy(to.data(), from.data(), bytes); });
  require(to.back() == std::byte{1}, "a copy of {} bytes is not complete", bytes);
  return 2 * static_cast<double>(bytes) / seconds;
}

/// What the host does for messages: posting one, and seeing that all of an exchange are there.
ordered_json host_part(const comm::Communicator& world, double latency) {
  comm::Counters counters(world, comm::all_others(world), 1, 64, 0);
  const comm::RowMove move(world.size());
  double posting = 0;
  int posted = 0;
  const double exchange = median_seconds(world, 20, [&] {
    const double begin = now_seconds();
    counters.start(move, nullptr);
    posting += now_seconds() - begin;
    ++posted;
    while (!counters.test()) sched_yield();
  });
  const int messages = std::max(1, 2 * (world.size() - 1));
  const double message = over_ranks(world, posting / posted / messages, Reduce::max);
  std::vector<std::int64_t> all(static_cast<std::size_t>(world.size()));
  const double agree =
      median_seconds(world, 20, [&] { world.allgather_into(std::int64_t{1}, std::span(all)); });
  return {{"basis", "measured"},
          {"launch_s", 0},
          {"poll_s", std::max(0.0, exchange - latency - message * messages)},
          {"message_s", message},
          {"agree_s", agree},
          {"eager_bytes", 4096},
          {"source", "an exchange of counters among all ranks; eager_bytes is stated"}};
}

ordered_json link_json(const std::optional<comm::LinkSpeed>& speed) {
  if (!speed) return nullptr;
  return {{"basis", "measured"},
          {"node_bytes_per_s", speed->node_bytes_per_s},
          {"pair_bytes_per_s", speed->pair_bytes_per_s},
          {"latency_s", speed->latency_s}};
}

ordered_json machine_json(const comm::Communicator& world, bool quick) {
  const comm::Topology topology = comm::discover_topology(world);
  const comm::Links links = comm::measure_links(world, topology);
  ordered_json gemm = ordered_json::array();
  for (const auto& [depth, columns] : {std::pair(512, 1536), std::pair(2048, 1024)}) {
    gemm.push_back(ladder(world, depth, columns, quick));
  }
  const double flops = gemm_rate(world, 1024, 1024);
  const std::size_t bytes = quick ? std::size_t{1} << 22 : std::size_t{1} << 26;
  const double memory =
      static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGESIZE));
  const double latency = links.between  ? links.between->latency_s
                         : links.inside ? links.inside->latency_s
                                        : 0;
  ordered_json file = {
      {"format", "atoll-machine"},
      {"format_version", 1},
      {"name", fmt::format("{} nodes of {} ranks, from {} on", topology.num_nodes(),
                           topology.ranks_on(0), topology.node_names.front())},
      {"nodes", {{"count", topology.num_nodes()}, {"ranks", topology.ranks_on(0)}}},
      {"backend", "cpu"},
      {"measured",
       {{"at", fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr)))},
        {"commit", build_commit},
        {"processor", processor_name()}}},
      {"arithmetic", {{"basis", "measured"}, {"peak_flops_per_s", flops}, {"gemm", gemm}}},
      {"memory",
       {{"basis", "measured"},
        {"bytes", memory / topology.ranks_on(0)},
        {"bytes_per_s", memory_rate(world, bytes)},
        {"row_bytes_per_s", copy_rate(world, bytes)}}}};
  if (links.inside) file["inside_node"] = link_json(links.inside);
  if (links.between) file["between_nodes"] = link_json(links.between);
  file["host"] = host_part(world, latency);
  return file;
}

int run(const comm::Communicator& world, int argc, char** argv) {
  const bool quick = argc == 3 && std::strcmp(argv[2], "--quick") == 0;
  if (argc != 2 && !quick) throw UsageError("which file? Give the machine file to write");
  const std::string text = io::json_text(machine_json(world, quick), 1) + "\n";
  world.agree([&] {
    if (world.rank() != 0) return;
    parse_machine(text, argv[1]);  // what is written can be read
    io::TextFile file(argv[1]);
    file.write(text);
    file.close();
    fmt::print("{}", text);
  });
  return 0;
}

}  // namespace
}  // namespace atl::perf

int main(int argc, char** argv) {
  return atl::perf::mpi_program("calibrate", argc, argv, atl::perf::run);
}
