// What overlap is worth: MoE layers with a given routing, run by the program's own driver,
// schedule, exchange and CPU backend. Measured in turn, in one process per rank:
//
//   compute        the arithmetic of one pass without messages
//   communication  its messages, with the same counts, without arithmetic
//   overlapped     the pass as the program runs it
//   serial         the pass with --no-overlap
//
// and from these (compute + communication - overlapped) / min(compute, communication). All four are
// the program's driver: without messages (perf/pass_rows.hpp), without arithmetic
// (perf/paced_backend.hpp), or whole. With --paced arithmetic is a timer everywhere, dilated until
// the cores are not too busy to be told apart. Times are the slowest rank's. Prints a line, and
// writes everything as JSON with --json.
//
//   mpirun -n 4 --oversubscribe build/cpu/perf/layers_bench --skew log-normal --chunks 4
//   mpirun -n 2 build/cpu/perf/layers_bench --tiny        seconds, for the tests
//   mpirun -n 4 ... --routing-only routing.json           which experts each token goes to, for
//   peers

#include <fmt/format.h>

#include <list>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "app/build_info.hpp"
#include "app/config.hpp"
#include "app/model/model_config.hpp"
#include "app/run/driver.hpp"
#include "comm/allotment.hpp"
#include "comm/environment.hpp"
#include "comm/transports/choice.hpp"
#include "comm/watchdog.hpp"
#include "compute/across_rows.hpp"
#include "io/text_file.hpp"
#include "perf/layers_model.hpp"
#include "perf/layers_options.hpp"
#include "perf/layers_report.hpp"
#include "perf/machine.hpp"
#include "perf/paced_backend.hpp"
#include "perf/pass_rows.hpp"
#include "perf/recorded_choices.hpp"
#include "perf/taken_up.hpp"

namespace atl::perf {
namespace {

using nlohmann::json;
using Reduce = comm::Communicator::Reduce;

constexpr int page_tokens = 64;

struct Outcome {
  double seconds = 0;
  std::vector<SampledToken> sampled;
};

class LayersBench {
 public:
  LayersBench(const comm::Communicator& world, const LayersOptions& options)
      : world_(world),
        options_(options),
        topology_(comm::discover_topology(world)),
        transport_(comm::choose_transport(world, comm::transport_named(options.transport))),
        route_(options.route == "nodes" ? Route::nodes : Route::flat),
        groups_(world,
                JobLayout({}, options.node_ranks.empty()
                                  ? topology_.node_of
                                  : nodes_of_ranks(options.node_ranks, world.size())),
                route_ == Route::nodes),
        model_(options, groups_.layout()),
        placement_(even_placement(model_.shape(), groups_.layout())),
        requests_(model_.requests(world.size())),
        clock_offset_(comm::clock_offset(world, topology_)) {
    compute::BackendOptions backend;
    backend.shape = model_.shape();
    backend.part = placement_.part_of(world.rank(), model_.shape(), groups_.layout());
    backend.page_tokens = page_tokens;
    batch_.max_sequences = static_cast<int>(requests_.size()) / world.size();
    backend.num_pages =
        std::int64_t{batch_.max_sequences} * ((options.sequence + 1) / page_tokens + 1);
    batch_.max_pass_tokens = options.tokens;
    batch_.min_chunk_tokens = 1;
    batch_.max_chunks = options.chunks;
    batch_.page_tokens = page_tokens;
    batch_.num_pages = backend.num_pages;
    backend.max_chunk_tokens = options.tokens;
    backend.num_chunks = options.chunks;
    backend.across = route_ == Route::nodes;
    backend_options_ = backend;
    rows_.emplace(world_, model_, *std::make_unique<Batcher>(next_batch()));
    silent_ = std::make_unique<PacedBackend>(backend, model_, world_.rank());
    auto real = compute::make_cpu_backend(backend);
    model_.load(*real, backend.part);
    backend_ = std::move(real);
    if (options.paced) pace_arithmetic();
    start_again();
  }

  void measure() {
    check();
    for (int i = -options_.warm_up; i < options_.repetitions; ++i) {
      const std::array<Measured, 4> measured = {
          measure_one([&] { return run_pass(*compute_).seconds; }),
          measure_one([&] { return run_pass(*communication_).seconds; }),
          measure_one([&] { return run_pass(*overlapped_).seconds; }),
          measure_one([&] { return run_pass(*serial_).seconds; })};
      if (i < 0) {
        start_again();  // forgets what warming up counted
        continue;
      }
      for (std::size_t kind = 0; kind < 4; ++kind) {
        times_[kind].push_back(measured[kind].seconds);
        busy_[kind].push_back(measured[kind].cores_busy);
      }
    }
    overlapped_->timeline.flush(groups_);
    serial_->timeline.flush(groups_);
  }

  /// Collective. Writes which experts each token of the pass goes to, after a check that the
  /// program sends it there; perf/peers/torch_moe.py reads it.
  void write_routing(const std::string& path) {
    check();
    Batcher batch = next_batch();
    std::vector<std::int32_t> codes;
    for (int c = 0; c < batch.num_chunks(); ++c) {
      for (const std::int32_t token : batch.chunk(c).tokens) {
        const auto of_token = model_.codes_of(token);
        codes.insert(codes.end(), of_token.begin(), of_token.end());
      }
    }
    const auto of_rank = world_.gather_vectors(std::span<const std::int32_t>(codes), 0);
    if (world_.rank() != 0) return;
    const json routing = {{"format", "atoll-routing"},
                          {"ranks", world_.size()},
                          {"experts", options_.experts},
                          {"top_k", options_.top_k},
                          {"tokens", options_.tokens},
                          {"skew", options_.skew},
                          {"expert_of_code", model_.expert_of_code()},  // [layers][experts]
                          {"codes_of_rank", of_rank}};                  // [ranks][tokens * top_k]
    io::TextFile file(path);
    file.write(routing.dump() + "\n");
    file.close();
  }

  /// One more pass, with every event; on rank 0 written to `path`.
  void write_trace(const std::string& path) {
    Runner traced(*this, *backend_, true, 100000);
    run_pass(traced);  // touches its memory
    const std::size_t before = traced.timeline.trace().size();
    run_pass(traced);
    const auto events =
        world_.gather_vectors(std::span(traced.timeline.trace()).subspan(before), 0);
    if (world_.rank() != 0) return;
    const auto step_of = [](const io::TraceEvent& event) {
      return Step{static_cast<StepKind>(event.kind), event.layer, event.chunk, {}};
    };
    io::write_trace(
        path, events, [&](const io::TraceEvent& e) { return step_of(e).name(); },
        [&](const io::TraceEvent& e) { return lane_of(step_of(e).kind); });
  }

  /// Collective.
  json report() {
    json result = {{"format", "atoll-layers"},
                   {"commit", build_commit},
                   {"ranks", world_.size()},
                   {"hosts", topology_.node_names},
                   {"host_of_rank", topology_.node_of},
                   {"mpi", comm::Environment::library()},
                   {"backend", backend_->description()},
                   {"transport", comm::name_of(transport_)}};
    result["config"] = {{"layers", options_.layers},
                        {"hidden", options_.hidden},
                        {"intermediate", options_.intermediate},
                        {"experts", options_.experts},
                        {"top_k", options_.top_k},
                        {"tokens", options_.tokens},
                        {"sequence", options_.sequence},
                        {"chunks", rows_->num_chunks()},
                        {"skew", options_.skew},
                        {"routing", options_.routing},
                        {"route", options_.route},
                        {"repetitions", options_.repetitions}};
    if (options_.paced) {
      result["pace"] = {{"seconds_per_token", pace_.per_token},
                        {"seconds_per_expert_row", pace_.per_expert_row},
                        {"dilation", dilation_}};
    }
    constexpr std::array<const char*, 4> names = {"compute", "communication", "overlapped",
                                                  "serial"};
    for (std::size_t kind = 0; kind < 4; ++kind) {
      result["seconds"][names[kind]] = times_[kind];
      result["cores_busy"][names[kind]] = busy_[kind];
    }
    result["overlap_efficiency"] = efficiencies(times_, world_.size());
    result["share"] = {{"overlapped", shares(*overlapped_)}, {"serial", shares(*serial_)}};
    add_traffic(result);
    add_machine(result);
    return result;
  }

  double median(std::size_t kind) const { return median_of(times_[kind]); }

 private:
  /// A driver with its own schedule and timeline.
  struct Runner {
    Runner(LayersBench& bench, compute::Backend& backend, bool overlap, std::size_t trace_events,
           bool messages = true)
        : timeline(bench.world_.size(), bench.clock_offset_, trace_events),
          driver(backend, bench.groups_, bench.model_.shape(), bench.placement_,
                 bench.driver_options(overlap, messages), timeline) {}
    Timeline timeline;
    Driver driver;
    std::int64_t passes = 0;
  };

  void start_again() {
    overlapped_.emplace(*this, *backend_, true, 0);
    serial_.emplace(*this, *backend_, false, 0);
    compute_.emplace(*this, *backend_, true, 0, /*messages=*/false);
    communication_.emplace(*this, *silent_, true, 0);
  }

  /// Replaces the arithmetic by a timer that takes as long, and longer where the cores are so busy
  /// with messages that ranks still take time from each other.
  void pace_arithmetic() {
    double seconds = 0;
    {
      Runner real(*this, *backend_, true, 0, /*messages=*/false);
      run_pass(real);  // touches its memory
      seconds = slowest(run_pass(real).seconds);
    }
    const Pace flops = flops_of(model_.shape());
    const double most =
        over_ranks(world_,
                   flops.per_token * options_.tokens * options_.layers +
                       flops.per_expert_row *
                           static_cast<double>(rows_->computed_by(world_.rank(), placement_)),
                   Reduce::max);
    auto paced = std::make_unique<PacedBackend>(backend_options_, model_, world_.rank());
    PacedBackend& timer = *paced;
    backend_ = std::move(paced);
    constexpr double most_busy = 0.6;
    for (int tries = 0; tries < 8; ++tries) {
      const double per_flop = seconds / most * dilation_;
      pace_ = {flops.per_token * per_flop, flops.per_expert_row * per_flop};
      timer.set_pace(pace_);
      Runner runner(*this, timer, true, 0);
      run_pass(runner);
      const double busy = over_ranks(
          world_, measure_one([&] { return run_pass(runner).seconds; }).cores_busy, Reduce::max);
      if (busy <= most_busy) return;
      dilation_ *= 1.2 * busy / most_busy;
    }
  }

  DriverOptions driver_options(bool overlap, bool messages) {
    DriverOptions driver;
    driver.num_chunks = options_.chunks;
    driver.overlap = overlap;
    driver.transport = transport_;
    driver.shares_cores = options_.shares_cores;
    driver.row_bytes = static_cast<std::size_t>(options_.hidden) * 2;
    driver.across_row_bytes = static_cast<std::size_t>(
        compute::across_row(options_.hidden, DType::bfloat16, options_.top_k).bytes);
    driver.flat = route_ == Route::flat;
    driver.nodes = route_ == Route::nodes;
    driver.max_head_rows = batch_.max_sequences;
    driver.max_chunk_tokens = options_.tokens;
    if (model_.traced()) {
      driver.forced = [this](int chunk, int layer) {
        return forced_.of(model_, batch_under_way_->chunk(chunk).tokens, chunk, layer);
      };
    }
    if (!messages) {
      driver.moves = [this](compute::Chunk& chunk, int index) {
        return std::make_unique<NoMessages>(*rows_, model_, placement_, world_.rank(), chunk,
                                            index);
      };
    }
    return driver;
  }

  template <typename Pass>
  Measured measure_one(const Pass& pass) const {
    const CoreSeconds before = CoreSeconds::now();
    const double seconds = slowest(pass());
    return {seconds, CoreSeconds::now().busy_since(before)};
  }
  double slowest(double seconds) const { return over_ranks(world_, seconds, Reduce::max); }

  /// Collective. The pass that every measurement runs.
  Batcher next_batch() {
    ListedRequests requests(requests_);
    RequestQueue queue(requests, {}, batch_, "");
    Batcher batch(batch_, room_of(requests, batch_));
    take_up(world_, queue, batch, loads_);
    require(batch.next_pass(loads_), "there is no token to process; raise --tokens");
    world_.barrier();
    return batch;
  }

  Outcome run_pass(Runner& runner) {
    Batcher batch = next_batch();
    const double begin = now_seconds();
    runner.timeline.begin_pass(Phase::prefill, runner.driver.schedule(batch.num_chunks(), {route_}),
                               begin, begin);
    batch_under_way_ = &batch;
    runner.driver.run_pass(batch, {route_});
    ++runner.passes;
    Outcome outcome;
    outcome.seconds = now_seconds() - begin;
    for (int c = 0; c < batch.num_chunks(); ++c) {
      const auto& sampled = batch.chunk(c).sampled;
      outcome.sampled.insert(outcome.sampled.end(), sampled.begin(), sampled.end());
    }
    runner.timeline.end_pass(batch.finish_pass(0));
    world_.barrier();
    return outcome;
  }

  /// Both schedules give the same tokens with the same bits, the router sent each row where the
  /// table says, and messages alone came back unchanged.
  void check() {
    const Outcome a = run_pass(*overlapped_);
    const Outcome b = run_pass(*serial_);
    const auto same = [](const SampledToken& x, const SampledToken& y) {
      return x.token == y.token && x.logprob == y.logprob;
    };
    require(!a.sampled.empty() && std::equal(a.sampled.begin(), a.sampled.end(), b.sampled.begin(),
                                             b.sampled.end(), same),
            "rank {} got other results with overlap than without", world_.rank());
    const auto& counted = overlapped_->driver.traffic().tokens_of_expert;
    for (int layer = 0; layer < options_.layers; ++layer) {
      for (int expert = 0; expert < options_.experts; ++expert) {
        std::int64_t expected = 0;
        for (int c = 0; c < rows_->num_chunks(); ++c) {
          expected += rows_->rows(layer, c, static_cast<std::size_t>(world_.rank()), expert);
        }
        const auto got = counted[static_cast<std::size_t>(layer * options_.experts + expert)];
        require(got == expected, "layer {} sent {} rows to expert {} instead of {}", layer, got,
                expert, expected);
      }
    }
    run_pass(*compute_);  // touches its memory
    run_pass(*communication_);
    for (int c = 0; c < rows_->num_chunks(); ++c) {
      silent_->check(c);
    }
  }

  json shares(const Runner& runner) const {
    const PhaseTimes& t = runner.timeline.times(Phase::prefill);
    std::array<double, 5> sums = {t.wall, t.compute, t.communication, t.synchronisation,
                                  t.overhead};
    world_.allreduce(std::span<double>(sums), Reduce::sum);
    return {{"compute", sums[1] / sums[0]},
            {"communication", sums[2] / sums[0]},
            {"synchronisation", sums[3] / sums[0]},
            {"overhead", sums[4] / sums[0]}};
  }

  /// Collective. Bytes of rows between ranks in one pass, as they were sent, the busiest link; per
  /// layer and rank the rows it computes, and the bytes that others would send it straight.
  void add_traffic(json& result) const {
    const auto ranks = static_cast<std::size_t>(world_.size());
    std::vector<std::int64_t> sent = communication_->driver.traffic().bytes_to;
    for (std::int64_t& to_rank : sent) to_rank /= communication_->passes;
    const auto bytes = world_.gather_vectors(std::span<const std::int64_t>(sent), 0);
    if (world_.rank() != 0) return;
    std::vector<std::vector<std::int64_t>> rows_of_layer;
    std::vector<std::vector<std::int64_t>> dispatched_to_of_layer;
    for (int layer = 0; layer < options_.layers; ++layer) {
      auto& computed = rows_of_layer.emplace_back(ranks);
      auto& dispatched = dispatched_to_of_layer.emplace_back(ranks);
      for (int expert = 0; expert < options_.experts; ++expert) {
        const auto& holders = placement_.of(layer).ranks_of_expert();
        const auto to = static_cast<std::size_t>(holders[static_cast<std::size_t>(expert)].front());
        for (std::size_t from = 0; from < ranks; ++from) {
          for (int c = 0; c < rows_->num_chunks(); ++c) {
            const std::int64_t rows = rows_->rows(layer, c, from, expert);
            computed[to] += rows;
            if (from != to) dispatched[to] += rows * options_.hidden * 2;
          }
        }
      }
    }
    result["bytes_from_to"] = bytes;
    result["expert_rows_of_layer"] = rows_of_layer;
    result["dispatched_bytes_to_of_layer"] = dispatched_to_of_layer;
    add_busiest_link(result, bytes, groups_.layout());
  }

  void add_machine(json& result) const {
    const bool small = options_.tokens < 128;
    const double expert_gemm = gemm_rate(world_, options_.hidden, options_.intermediate);
    const double peak = std::max(expert_gemm, gemm_rate(world_, 1024, 1024));
    const double stream = stream_rate(world_, topology_, small ? 1 : 8, 7);
    result["machine"] = {
        {"cores_of_job_on_node", comm::find_allotment(world_, topology_).nodes[0].cores},
        {"gemm_flops_per_s_per_rank", peak},
        {"expert_gemm_flops_per_s_per_rank", expert_gemm},
        {"memory_bytes_per_s_per_rank", memory_rate(world_, std::size_t{small ? 4U : 64U} << 20)},
        {"link_bytes_per_s", stream}};
    const double flops = gemm_flops_per_token(model_.shape()) * options_.tokens;
    std::int64_t weight_bytes = backend_->memory().weights;
    world_.allreduce(std::span(&weight_bytes, 1), Reduce::max);
    result["flops_per_rank"] = flops;
    result["weight_bytes_per_rank"] = weight_bytes;
    if (stream <= 0 || world_.rank() != 0) return;
    const double bytes = result["busiest_link_bytes"].get<double>();
    result["link_use"] = {{"communication", bytes / median(1) / stream},
                          {"overlapped", bytes / median(2) / stream}};
  }

  const comm::Communicator& world_;
  LayersOptions options_;
  comm::Topology topology_;
  comm::TransportKind transport_;
  Route route_;
  Groups groups_;
  LayersModel model_;
  Placement placement_;
  std::vector<io::Request> requests_;
  double clock_offset_;
  BatchOptions batch_;
  Batcher* batch_under_way_ = nullptr;
  RecordedChoices forced_;
  std::vector<RankLoad> loads_;
  compute::BackendOptions backend_options_;
  std::optional<PassRows> rows_;
  std::unique_ptr<compute::Backend> backend_;  // the real one, or a timer
  std::unique_ptr<PacedBackend> silent_;       // no arithmetic at all
  Pace pace_;
  double dilation_ = 1;
  std::optional<Runner> overlapped_, serial_, compute_, communication_;
  // Compute, communication, overlapped, serial.
  std::array<std::vector<double>, 4> times_;
  std::array<std::vector<double>, 4> busy_;  // share of the cores of rank 0's machine
};

int run(int argc, char** argv, const comm::Communicator& world, comm::Watchdog& watchdog) {
  watchdog.connect(world);
  Arguments arguments;
  const int code = parse(argc, argv, world.rank(), world.size(), arguments);
  if (code >= 0) return code;
  comm::watched::stage("the measurement", 120, /*work_may_last=*/true);
  LayersOptions& options = arguments.options;
  const comm::Allotment given = comm::find_allotment(world, comm::discover_topology(world));
  options.shares_cores =
      arguments.shares_cores == "auto" ? given.mine.cores < 1 : arguments.shares_cores == "yes";
  LayersBench bench(world, options);
  if (!arguments.routing_file.empty()) {
    bench.write_routing(arguments.routing_file);
    return 0;
  }
  bench.measure();
  const json report = bench.report();
  if (!arguments.trace_file.empty()) bench.write_trace(arguments.trace_file);
  if (world.rank() != 0) return 0;
  fmt::print(
      "{} ranks, {} chunks, {}, {}{}: compute {:.2f} ms, communication {:.2f} ms, overlapped "
      "{:.2f} "
      "ms, serial {:.2f} ms, overlap efficiency {}\n",
      world.size(), report["config"]["chunks"].get<int>(), options.skew,
      report["transport"].get<std::string>(), options.paced ? ", paced" : "", bench.median(0) * 1e3,
      bench.median(1) * 1e3, bench.median(2) * 1e3, bench.median(3) * 1e3,
      world.size() > 1
          ? fmt::format("{:.2f}", report["overlap_efficiency"]["of_medians"].get<double>())
          : "-");
  if (!arguments.json_file.empty()) {
    io::TextFile file(arguments.json_file);
    file.write(report.dump(1) + "\n");
    file.close();
  }
  return 0;
}

}  // namespace
}  // namespace atl::perf

int main(int argc, char** argv) {
  atl::comm::Watchdog watchdog;
  const atl::comm::Environment mpi(&argc, &argv);
  const auto world = atl::comm::Communicator::world();
  try {
    return atl::perf::run(argc, argv, world, watchdog);
  } catch (const std::exception& error) {
    watchdog.abort(world, error.what());
  }
}
