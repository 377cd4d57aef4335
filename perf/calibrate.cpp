// What ranks, links and hosts of this machine do, as a machine file for `atoll plan --cluster`;
// a minute or two. Every rank measures while all others do the same, and the slowest counts.
//
//   mpirun -n 16 build/cpu/perf/calibrate machine.json [--quick]

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <ctime>
#include <nlohmann/json.hpp>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "app/build_info.hpp"
#include "app/plan/step_costs.hpp"
#include "app/run/machine_file.hpp"
#include "app/run/processor.hpp"
#include "comm/allotment.hpp"
#include "comm/communicator.hpp"
#include "comm/counters.hpp"
#include "comm/links.hpp"
#include "io/json_shown.hpp"
#include "io/text_file.hpp"
#include "perf/calibration_layer.hpp"
#include "perf/decode_attention.hpp"
#include "perf/machine.hpp"
#include "perf/mpi_program.hpp"

namespace atl::perf {
namespace {

using nlohmann::ordered_json;
using Reduce = comm::Communicator::Reduce;

/// How much is measured: `quick` is for the tests.
struct Effort {
  bool quick = false;
  std::vector<int> rows() const {
    if (quick) return {1, 8, 32, 128};
    return {1, 2, 4, 8, 16, 32, 64, 128, 256, 512};
  }
  std::vector<std::pair<int, int>> shapes() const {  // depth, columns
    if (quick) return {{512, 1536}, {2048, 1024}};
    return {{512, 16}, {512, 512}, {512, 1536}, {1024, 512}, {2048, 1024}, {2048, 4096}};
  }
  std::vector<int> contexts(int tokens) const {
    const int first = tokens == 1 ? 16 : 0;
    if (quick) return {first, 64};
    return {first, 256, 1024, 4096};
  }
  std::size_t more_than_caches() const {
    return quick ? std::size_t{1} << 20 : std::size_t{1} << 26;
  }
  double enough_s() const { return quick ? 0.02 : 0.4; }
};

/// A ladder of rows for one shape of matrix. Each product takes another one, as steps of a pass do:
/// few rows wait for memory.
ordered_json ladder(const comm::Communicator& world, int depth, int columns, const Effort& effort) {
  const auto gemm = compute::make_gemm(DType::bfloat16, 1);
  constexpr std::uint16_t one = 0x3f80;
  const std::vector<std::uint16_t> weight(
      static_cast<std::size_t>(depth) * static_cast<std::size_t>(columns), one);
  const std::size_t copies = 1 + effort.more_than_caches() / (sizeof(one) * weight.size());
  std::vector<compute::PackedWeight> packed;
  for (std::size_t i = 0; i < std::min<std::size_t>(copies, 512); ++i) {
    packed.push_back(gemm->pack(weight.data(), columns, depth));
  }
  gemm->prepare(packed.front(), compute::Finish::float32);
  const std::vector<int> rows = effort.rows();
  const auto most = static_cast<std::size_t>(compute::whole_tiles(rows.back()));
  const std::vector<std::uint16_t> a(most * static_cast<std::size_t>(depth), one);
  std::vector<float> c(most * static_cast<std::size_t>(columns));
  ordered_json entry = {{"depth", depth}, {"columns", columns}, {"rows", rows}};
  double before = 0;
  std::size_t next = 0;
  for (const int count : rows) {
    const double flops = 2.0 * count * depth * columns;
    const int runs = std::clamp(static_cast<int>((effort.quick ? 1e7 : 4e8) / flops), 1,
                                effort.quick ? 20 : 500);
    double seconds = median_seconds(world, 3,
                                    [&] {
                                      for (int r = 0; r < runs; ++r) {
                                        next = (next + 1) % packed.size();
                                        gemm->run(packed[next], a.data(), count, c.data(),
                                                  compute::Finish::float32);
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

/// Attention of some rows after contexts: those of a prompt, and one of each of eight sequences.
ordered_json attention_ladders(const comm::Communicator& world, CalibrationLayer& layer,
                               const Effort& effort) {
  using Layer = CalibrationLayer;
  ordered_json ladders = ordered_json::array();
  const auto add = [&](int tokens, const auto& seconds_after) {
    const std::vector<int> contexts = effort.contexts(tokens);
    ordered_json entry = {{"tokens", tokens},
                          {"heads", Layer::heads},
                          {"kv_heads", Layer::heads},
                          {"head_dim", Layer::head_dim},
                          {"contexts", contexts}};
    for (const int context : contexts) entry["seconds"].push_back(seconds_after(context));
    ladders.push_back(entry);
  };
  add(1, [&](int context) {
    const int batch = effort.quick ? 2 : 8;
    const DecodeShape shape{Layer::heads, Layer::heads, Layer::head_dim, batch, context, 1};
    DecodeAttention decode(shape, static_cast<std::int64_t>(effort.more_than_caches() / 2));
    const int runs = effort.quick ? 2 : std::clamp(8192 / shape.context, 4, 500);
    const auto steps = [&] {
      for (int i = 0; i < runs; ++i) decode.step();
    };
    return median_seconds(world, 3, steps) / runs / batch;
  });
  for (const int tokens : {16, 64, 256}) {
    if (tokens > layer.options().max_chunk_tokens) break;
    add(tokens, [&](int context) { return layer.attention_seconds(tokens, context); });
  }
  return ladders;
}

/// What experts' steps take over what `machine` says of them, with even and with skewed rows.
ordered_json experts_ladder(CalibrationLayer& layer, const Machine& machine, const Effort& effort) {
  const compute::BackendOptions& options = layer.options();
  const StepCosts costs(machine, options.shape, options.dtype, options.part,
                        compute::OutputCut::columns);
  constexpr int experts = CalibrationLayer::num_experts;
  const double mean = effort.quick ? 4 : 48;
  ordered_json ladder;
  for (const double sigma : {0.0, 0.5, 1.0}) {
    std::vector<double> loads;
    for (int e = 0; e < experts; ++e) loads.push_back(std::exp(sigma * (4.0 * e / experts - 2)));
    const double sum = std::accumulate(loads.begin(), loads.end(), 0.0);
    std::vector<std::int64_t> rows;
    for (const double load : loads) rows.push_back(std::llround(load / sum * mean * experts));
    StepWork work;
    work.layer = 0;
    work.expert_rows = rows;
    const double all =
        static_cast<double>(std::accumulate(rows.begin(), rows.end(), std::int64_t{0}));
    ladder["busiest_over_mean"].push_back(static_cast<double>(rows.back()) * experts / all);
    ladder["over_products"].push_back(layer.experts_seconds(rows) /
                                      costs.seconds(StepKind::experts, work));
  }
  return ladder;
}

/// What arithmetic loses beside messages to the next rank of the node, or of the next node.
double lost_beside(const comm::Communicator& world, const comm::Topology& topology,
                   CalibrationLayer& layer, const comm::LinkSpeed& speed, bool between,
                   const Effort& effort) {
  const auto self = static_cast<std::size_t>(world.rank());
  const int nodes = topology.num_nodes(), here = topology.ranks_on(topology.node_of[self]);
  const auto rank_at = [&](int node, int local) {
    for (int rank = 0; rank < world.size(); ++rank) {
      const auto r = static_cast<std::size_t>(rank);
      if (topology.node_of[r] == node && topology.local_rank_of[r] == local) return rank;
    }
    fail("node {} has no rank {}: calibrate with as many ranks on each node", node, local);
  };
  const auto partner = [&](int step) {
    const int node = topology.node_of[self], local = topology.local_rank_of[self];
    return between ? rank_at((node + nodes + step) % nodes, local)
                   : rank_at(node, (local + here + step) % here);
  };
  constexpr double message_s = 0.02;
  const double rate = std::min(speed.pair_bytes_per_s, speed.node_bytes_per_s / here);
  const auto bytes = static_cast<std::int64_t>(std::min(rate * message_s, 4e6));
  const bool shares_cores = comm::find_allotment(world, topology).mine.cores < 1;
  return layer.lost_per_byte(partner(1), partner(-1), bytes, shares_cores, effort.enough_s());
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
          {"poll_s", std::max(0.0, exchange - latency - message * messages)},
          {"message_s", message},
          {"agree_s", agree},
          {"eager_bytes", 4096},
          {"source", "an exchange of counters among all ranks; eager_bytes is stated"}};
}

ordered_json link_json(const std::optional<comm::LinkSpeed>& speed) {
  return {{"basis", "measured"},
          {"node_bytes_per_s", speed->node_bytes_per_s},
          {"pair_bytes_per_s", speed->pair_bytes_per_s},
          {"latency_s", speed->latency_s}};
}

ordered_json about(const comm::Topology& topology) {
  return {{"format", "atoll-machine"},
          {"format_version", 1},
          {"name", fmt::format("{} nodes of {} ranks, from {} on", topology.num_nodes(),
                               topology.ranks_on(0), topology.node_names.front())},
          {"nodes", {{"count", topology.num_nodes()}, {"ranks", topology.ranks_on(0)}}},
          {"backend", "cpu"},
          {"measured",
           {{"at", fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr)))},
            {"commit", build_commit},
            {"processor", processor_name()}}}};
}

ordered_json machine_json(const comm::Communicator& world, const Effort& effort) {
  const comm::Topology topology = comm::discover_topology(world);
  const comm::Links links = comm::measure_links(world, topology);
  ordered_json file = about(topology);
  ordered_json gemm = ordered_json::array();
  for (const auto& [depth, columns] : effort.shapes()) {
    gemm.push_back(ladder(world, depth, columns, effort));
  }
  file["arithmetic"] = {
      {"basis", "measured"}, {"peak_flops_per_s", gemm_rate(world, 1024, 1024)}, {"gemm", gemm}};
  CalibrationLayer layer(world, effort.quick ? 32 : 256, effort.contexts(1).back(), effort.quick);
  const double memory =
      static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGESIZE));
  file["memory"] = {{"basis", "measured"},
                    {"bytes", memory / topology.ranks_on(0)},
                    {"bytes_per_s", memory_rate(world, effort.more_than_caches())},
                    {"row_bytes_per_s", layer.row_rate(layer.options().max_chunk_tokens)}};
  if (links.inside) file["inside_node"] = link_json(links.inside);
  if (links.between) file["between_nodes"] = link_json(links.between);
  const double latency = links.between  ? links.between->latency_s
                         : links.inside ? links.inside->latency_s
                                        : 0;
  file["host"] = host_part(world, latency);
  file["host"]["launch_s"] = layer.launch_seconds();
  file["arithmetic"]["attention"] = attention_ladders(world, layer, effort);
  // Over what the figures until here say.
  file["arithmetic"]["experts"] =
      experts_ladder(layer, parse_machine(file.dump(), "figures"), effort);
  if (links.inside) {
    file["inside_node"]["arithmetic_s_per_byte"] =
        lost_beside(world, topology, layer, *links.inside, false, effort);
  }
  if (links.between) {
    file["between_nodes"]["arithmetic_s_per_byte"] =
        lost_beside(world, topology, layer, *links.between, true, effort);
  }
  return file;
}

int run(const comm::Communicator& world, int argc, char** argv) {
  const bool quick = argc == 3 && std::strcmp(argv[2], "--quick") == 0;
  if (argc != 2 && !quick) throw UsageError("which file? Give the machine file to write");
  const std::string text = io::json_text(machine_json(world, {quick}), 1) + "\n";
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
