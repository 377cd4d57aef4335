#include "app/run/check.hpp"

#include <fmt/format.h>
#include <sched.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>
#include <random>
#include <vector>

#include "app/run/check_facts.hpp"
#include "app/run/check_judgement.hpp"
#include "app/run/check_text.hpp"
#include "comm/allotment.hpp"
#include "comm/lane.hpp"
#include "comm/pair_rates.hpp"
#include "comm/topology.hpp"
#include "comm/transports/choice.hpp"
#include "comm/watchdog.hpp"
#include "compute/clock.hpp"
#include "compute/cpu/probe.hpp"
#include "io/folder_probe.hpp"
#include "io/json_shown.hpp"
#include "io/text_file.hpp"

namespace atl {

namespace {

using Reduce = comm::Communicator::Reduce;

constexpr std::size_t row_bytes = 4096;
constexpr std::size_t most_bytes_sent = std::size_t{1} << 20;  // by each rank in one exchange
constexpr int exchanges = 5;                                   // the best counts
constexpr int most_tries = 4;                                  // of cores that look slow
constexpr double looks_slow = 0.85;                            // of the median
constexpr std::size_t probe_bytes = std::size_t{16} << 20;

/// Every rank sends some rows to every other, all at once.
comm::RowMove even_move(const comm::Communicator& world) {
  const int size = world.size();
  const auto wanted = most_bytes_sent / row_bytes / static_cast<std::size_t>(std::max(1, size - 1));
  const int rows = std::clamp(static_cast<int>(wanted), 1, 64);
  comm::RowMove move(size);
  int at = 0;
  for (int peer = 0; peer < size; ++peer) {
    const auto p = static_cast<std::size_t>(peer);
    const int count = peer == world.rank() ? 0 : rows;
    move.send_counts[p] = move.recv_counts[p] = count;
    move.send_offsets[p] = move.recv_offsets[p] = at;
    at += count;
  }
  return move;
}

CheckedTransport checked_transport(const comm::Communicator& world,
                                   const comm::TransportInfo& transport) {
  CheckedTransport checked{std::string(transport.name)};
  checked.passed = comm::canary(world, transport.kind);
  if (!checked.passed || world.size() == 1) return checked;
  comm::LaneOptions options;
  options.transport = transport.kind;
  options.row_bytes = row_bytes;
  comm::Lane lane(world, options);
  const comm::RowMove move = even_move(world);
  const auto bytes = static_cast<std::size_t>(move.rows_sent()) * row_bytes;
  const std::vector<std::byte> sent(bytes);
  std::vector<std::byte> received(bytes);
  double least = 0;
  for (int i = 0; i <= exchanges; ++i) {  // the first connects
    world.barrier();
    const comm::Waiting waiting("a transport's rate");
    const double begin = now_seconds();
    lane.start(move, sent.data(), received.data());
    while (!lane.test()) sched_yield();
    double seconds = now_seconds() - begin;
    world.allreduce(std::span(&seconds, 1), Reduce::max);
    if (i > 0) least = least == 0 ? seconds : std::min(least, seconds);
  }
  checked.bytes_per_s = static_cast<double>(bytes) / least;
  return checked;
}

/// Rank 0 writes, then every rank looks; the writer's file lives as long as others look.
void look_at_folder(const comm::Communicator& world, const std::string& folder, RankFacts& facts,
                    MachineFacts& machine) {
  std::random_device random;
  const std::uint64_t token = world.broadcast_value((std::uint64_t{random()} << 32) | random(), 0);
  std::unique_ptr<io::FolderProbe> probe;
  machine.folder = folder;
  if (world.rank() == 0) {
    machine.folder_problem = comm::failure_of([&] {
                               probe =
                                   std::make_unique<io::FolderProbe>(folder, token, probe_bytes);
                             }).message;
  }
  machine.folder_problem = world.broadcast(machine.folder_problem, 0);
  if (!machine.folder_problem.empty()) return;
  if (probe) {
    machine.folder_write_bytes_per_s = probe->written_bytes_per_s();
    machine.folder_locks = probe->locked();
  }
  const io::FolderView view = io::look_at_probe(folder, token, probe_bytes);
  facts.folder_problem = view.problem;
  facts.folder_bytes_per_s = view.problem.empty() ? view.read_bytes_per_s : 0;
  facts.sees_lock = view.sees_lock;
  world.barrier();
}

/// What ranks were given of their nodes.
void take_allotment(const comm::Communicator& world, const comm::Topology& topology,
                    RankFacts& facts) {
  const comm::Allotment allotment = comm::find_allotment(world, topology);
  const auto node =
      static_cast<std::size_t>(topology.node_of[static_cast<std::size_t>(world.rank())]);
  facts.node = static_cast<int>(node);
  facts.cores_given = allotment.mine.cores;
  facts.cores_by = allotment.nodes[node].cores_by;
  facts.memory_given = allotment.mine.memory_bytes;
  facts.node_cores = allotment.nodes[node].cores;
  facts.node_memory = allotment.nodes[node].memory_bytes;
}

/// Collective. All at once; ranks that look slow beside the others have more tries, since what else
/// ran there may have made them look so.
void measure_cores(const comm::Communicator& world, RankFacts& facts) {
  bool again = true;
  for (int tries = 0; tries < most_tries; ++tries) {
    world.barrier();
    world.agree([&] {
      if (!again) return;
      const compute::CoreRates rates = compute::measure_core();
      facts.flops_per_s = std::max(facts.flops_per_s, rates.flops_per_s);
      facts.read_bytes_per_s = std::max(facts.read_bytes_per_s, rates.read_bytes_per_s);
      facts.share = tries == 0 ? rates.share : std::max(facts.share, rates.share);
    });
    again = false;
    bool anywhere = false;
    for (const double mine : {facts.flops_per_s, facts.read_bytes_per_s}) {
      std::vector<double> all = world.allgather(mine);
      std::sort(all.begin(), all.end());
      const double suspicious = looks_slow * all[all.size() / 2];
      again = again || mine < suspicious;
      anywhere = anywhere || all.front() < suspicious;
    }
    if (!anywhere) return;
  }
}

/// On rank 0; elsewhere only what all ranks have.
MachineFacts look(const comm::Communicator& world, const CheckOptions& options) {
  const comm::Topology topology = comm::discover_topology(world);
  MachineFacts machine;
  machine.nodes = topology.node_names;
  RankFacts facts;
  world.agree([&] { facts = own_facts(); });
  take_allotment(world, topology, facts);
  if (!options.no_rates) measure_cores(world, facts);
  machine.pairs =
      options.no_rates ? comm::pairs_of_nodes(topology) : comm::measure_pairs(world, topology);
  facts.unheard = comm::unheard_by_udp(world, topology);
  for (const comm::TransportInfo& transport : comm::transports) {
    if (!transport.staged) machine.transports.push_back(checked_transport(world, transport));
  }
  look_at_folder(world, options.folder, facts, machine);
  for (const std::string& text : world.gather(io::json_text(nlohmann::json(facts)), 0)) {
    machine.ranks.push_back(nlohmann::json::parse(text).get<RankFacts>());
  }
  return machine;
}

}  // namespace

void check_machine(const comm::Communicator& world, const CheckOptions& options) {
  std::optional<io::TextFile> report;
  world.agree([&] {
    if (world.rank() == 0 && !options.report.empty()) report.emplace(options.report);
  });
  const MachineFacts machine = look(world, options);
  world.agree([&] {
    if (world.rank() != 0) return;
    const Verdict verdict = judge(machine);
    fmt::print("{}", check_text(machine, verdict));
    std::fflush(stdout);
    if (report) {
      report->write(io::json_text(check_json(machine, verdict), 1) + "\n");
      report->close();
    }
    if (verdict.problems.empty()) return;
    fail("check: {} problem{} named above{}; a run on this machine may be slow, or fail",
         verdict.problems.size(), verdict.problems.size() == 1 ? ", which is" : "s, which are",
         options.report.empty() ? "" : " and in " + options.report);
  });
}

}  // namespace atl
