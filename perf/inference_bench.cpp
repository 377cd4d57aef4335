// How close inference comes to what its arithmetic and its memory allow, on the `bench-cpu` preset:
//
//   prefill  time of the whole forward pass against the time its GEMMs alone take (same shapes,
//   same
//            rows, same weights' sizes, measured right before and after it in the same process);
//   decode   time of a pass against the time to read the bytes it must read, at the memory
//   bandwidth
//            measured before and after it by all ranks at once.
//
//   mpirun -n 2 --bind-to none build/cpu/perf/inference_bench            about a minute
//   mpirun -n 2 --bind-to none build/cpu/perf/inference_bench --tiny     seconds, for the tests
//
// Times are the maximum over ranks. Weights are random (seed 0) and made in memory.

#include <benchmark/benchmark.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "app/model/init.hpp"
#include "app/model/model_config.hpp"
#include "app/run/batcher.hpp"
#include "app/run/driver.hpp"
#include "comm/communicator.hpp"
#include "comm/environment.hpp"
#include "compute/cpu/gemm.hpp"
#include "perf/taken_up.hpp"

namespace atl {
namespace {

constexpr int page_tokens = 64;

struct Sizes {
  std::string preset = "bench-cpu";
  int prompts = 4;  // per rank, prefill
  int prompt_tokens = 512;
  int sequences = 16;  // per rank, decode
  int decode_passes = 16;
  int chunks = 2;
  int repetitions = 7;
};

/// The elements of a weight, or of one expert's.
std::vector<std::byte> random_weight(const compute::WeightInfo& info, int expert, DType dtype) {
  const auto count = static_cast<std::size_t>(info.num_elements());
  std::vector<std::byte> bytes(count * size_of(dtype));
  if (info.use == compute::Use::vector) {  // norms are all ones
    const std::uint16_t one = dtype == DType::bfloat16 ? 0x3f80 : 0x3c00;
    std::fill_n(reinterpret_cast<std::uint16_t*>(bytes.data()), count, one);
  } else {
    const std::string name = fmt::format("{} {} {}", info.layer, name_of(info.id), expert);
    fill_random(0, name, 0, 1.0 / std::sqrt(static_cast<double>(info.cols)), dtype, bytes);
  }
  return bytes;
}

/// One rank's weights, backend and driver.
/// The requests of one measurement, which every rank has, and those that this rank serves.
struct Batch {
  Batch(std::vector<io::Request> all, const BatchOptions& options)
      : requests(std::move(all)),
        queue(requests, {}, options, ""),
        batcher(options, perf::room_of(requests, options)) {}
  Batch(const Batch&) = delete;
  Batch& operator=(const Batch&) = delete;

  ListedRequests requests;
  RequestQueue queue;
  Batcher batcher;
};

class Bench {
 public:
  Bench(const comm::Communicator& world, const Sizes& sizes)
      : world_(world),
        sizes_(sizes),
        config_(preset(sizes.preset)),
        groups_(world, JobLayout({}, std::vector<int>(static_cast<std::size_t>(world.size()))),
                /*nodes=*/false),
        placement_(even_placement(config_.shape, groups_.layout())),
        timeline_(world.size(), 0, 0),
        gemm_(compute::make_gemm(config_.dtype, 1)) {
    compute::BackendOptions options;
    options.shape = config_.shape;
    options.dtype = config_.dtype;
    options.part = placement_.part_of(world.rank(), config_.shape, groups_.layout());
    options.num_threads = 1;
    options.page_tokens = page_tokens;
    const int sequences = std::max(sizes_.sequences, sizes_.prompts);
    options.num_pages = sequences * (sizes_.prompt_tokens / page_tokens + 2);
    batch_.max_sequences = sequences;
    batch_.max_pass_tokens = sizes_.prompts * sizes_.prompt_tokens;
    batch_.max_chunks = sizes_.chunks;
    batch_.page_tokens = page_tokens;
    batch_.num_pages = options.num_pages;
    options.max_chunk_tokens = batch_.max_pass_tokens;
    backend_ = compute::make_cpu_backend(options);
    load(options.part);
    DriverOptions driver;
    driver.num_chunks = sizes_.chunks;
    driver.row_bytes = static_cast<std::size_t>(config_.shape.hidden) * size_of(config_.dtype);
    driver.max_head_rows = batch_.max_sequences;
    driver.max_chunk_tokens = options.max_chunk_tokens;
    driver_ =
        std::make_unique<Driver>(*backend_, groups_, config_.shape, placement_, driver, timeline_);
  }

  const comm::Communicator& world() const { return world_; }
  const Sizes& sizes() const { return sizes_; }

  /// The slowest rank's seconds.
  double slowest(double seconds) const {
    world_.allreduce(std::span(&seconds, 1), comm::Communicator::Reduce::max);
    return seconds;
  }

  /// Prompts of random bytes, `count` per rank.
  std::vector<io::Request> requests(int count, int max_tokens) const {
    std::mt19937 random(1);
    std::vector<io::Request> all(static_cast<std::size_t>(count * world_.size()));
    for (std::size_t i = 0; i < all.size(); ++i) {
      all[i].id = std::to_string(i);
      all[i].max_tokens = max_tokens;
      for (int t = 0; t < sizes_.prompt_tokens; ++t) {
        all[i].tokens.push_back(static_cast<std::int32_t>(random() % 256));
      }
    }
    return all;
  }

  /// Runs one pass if there is one; returns its seconds on this rank, or a negative number.
  double run_pass(Batch& batch) {
    Batcher& batcher = batch.batcher;
    const double begin = now_seconds();
    perf::take_up(world_, batch.queue, batcher, loads_);
    if (!batcher.next_pass(loads_)) return -1;
    timeline_.begin_pass(batcher.has_prompt_tokens() ? Phase::prefill : Phase::decode,
                         driver_->schedule(batcher.num_chunks(), {}), begin, begin);
    driver_->run_pass(batcher, {});
    timeline_.end_pass(batcher.finish_pass(0));
    const double seconds = now_seconds() - begin;
    if (timeline_.full()) timeline_.flush(groups_);
    return seconds;
  }

  const BatchOptions& batch_options() const { return batch_; }

  /// [layers][local experts]: rows computed on this rank since the last call.
  std::vector<std::vector<std::int64_t>> take_expert_rows() {
    const ModelShape& shape = config_.shape;
    auto counts = driver_->traffic().tokens_of_expert;
    world_.allreduce(std::span(counts), comm::Communicator::Reduce::sum);
    before_.resize(counts.size());
    std::vector<std::vector<std::int64_t>> rows(static_cast<std::size_t>(shape.num_layers));
    for (int layer = 0; layer < shape.num_layers; ++layer) {
      for (const int expert : own_experts()) {
        const auto at = static_cast<std::size_t>(layer * shape.num_experts + expert);
        rows[static_cast<std::size_t>(layer)].push_back(counts[at] - before_[at]);
      }
    }
    before_ = counts;
    return rows;
  }

  /// Seconds of the plain GEMMs that `tokens` rows of this rank and `expert_rows` need.
  double time_gemms(std::int64_t tokens, const std::vector<std::vector<std::int64_t>>& expert_rows,
                    std::int64_t head_rows) {
    const ModelShape& shape = config_.shape;
    const double begin = now_seconds();
    for (int layer = 0; layer < shape.num_layers; ++layer) {
      multiply(packed(Weight::qkv, layer), tokens);
      multiply(packed(Weight::o, layer), tokens);
      if (shape.is_dense(layer)) {
        multiply_mlp(layer, -1, tokens);
        continue;
      }
      multiply(packed(Weight::router, layer), tokens);
      const std::vector<std::int64_t>& rows = expert_rows[static_cast<std::size_t>(layer)];
      for (std::size_t e = 0; e < rows.size(); ++e) {
        multiply_mlp(layer, static_cast<int>(e), rows[e]);
      }
    }
    multiply(packed(Weight::lm_head, -1), head_rows);
    return now_seconds() - begin;
  }

  /// Bytes of weights one decode pass must read, and of keys and values at `context` tokens.
  std::int64_t pass_bytes(const std::vector<std::vector<std::int64_t>>& expert_rows,
                          std::int64_t context) const {
    const ModelShape& shape = config_.shape;
    std::int64_t bytes = 0;
    for (const auto& [place, weight] : packed_) {
      const auto& [id, layer, expert] = place;
      const bool read =
          expert < 0 ||
          expert_rows[static_cast<std::size_t>(layer)][static_cast<std::size_t>(expert)] > 0;
      if (read) bytes += weight.bytes();
    }
    return bytes + std::int64_t{2} * context * shape.num_layers * shape.kv_width() *
                       static_cast<std::int64_t>(size_of(config_.dtype));
  }

  /// Bytes per second at which this rank reads memory while all others do the same.
  double memory_bandwidth() {
    if (stream_.empty()) stream_.resize((sizes_.preset == "bench-cpu" ? 256U : 16U) << 17U, 1);
    double best = 0;
    for (int i = 0; i < 3; ++i) {
      world_.barrier();
      const double begin = now_seconds();
      std::uint64_t sum = 0;
      for (const std::uint64_t word : stream_) sum += word;
      const double seconds = now_seconds() - begin;
      require(sum == stream_.size(), "the memory benchmark read {} instead of {}", sum,
              stream_.size());
      best = std::max(best, static_cast<double>(stream_.size() * 8) / seconds);
    }
    world_.allreduce(std::span(&best, 1), comm::Communicator::Reduce::min);
    return best;
  }

 private:
  using Packed = compute::PackedWeight;
  using Weight = compute::Weight;

  const std::vector<std::int32_t>& own_experts() const {
    return placement_.kinds.front().experts_of(world_.rank());
  }

  /// Loads the backend's weights, and packs matrices a second time for the GEMMs alone.
  void load(const compute::Part& part) {
    const ModelShape& s = config_.shape;
    require(s.activation == Activation::gelu_tanh && s.qk_norm == QkNorm::none,
            "preset {} has another structure than this benchmark's GEMMs", sizes_.preset);
    const auto one = [&](const compute::WeightInfo& info, int expert, int local_expert) {
      const std::vector<std::byte> bytes = random_weight(info, expert, config_.dtype);
      backend_->load_weight(info.id, info.layer, local_expert,
                            {bytes.data(), config_.dtype, info.rows, info.cols});
      if (info.use == compute::Use::vector || info.id == Weight::embedding) return;
      Packed& packed = packed_[{info.id, info.layer, local_expert}];
      packed = gemm_->pack(bytes.data(), static_cast<int>(info.rows), static_cast<int>(info.cols));
      gemm_->prepare(packed, compute::Finish::rounded);
    };
    compute::for_each_weight(s, part, one);
    backend_->finish_loading();
    const int widest = std::max(
        {s.q_width() + 2 * s.kv_width(), s.intermediate, s.moe_intermediate, s.hidden, s.vocab});
    a_.assign(static_cast<std::size_t>(compute::tile_rows) * static_cast<std::size_t>(widest),
              0x3c00);
    c_ = a_;
  }

  void multiply(const Packed& weight, std::int64_t rows) {
    for (std::int64_t t = 0; t < rows; t += compute::tile_rows) {
      gemm_->run(weight, a_.data(), std::min<std::int64_t>(compute::tile_rows, rows - t), c_.data(),
                 compute::Finish::rounded);
    }
  }
  const Packed& packed(Weight weight, int layer, int local_expert = -1) const {
    return packed_.at({weight, layer, local_expert});
  }
  void multiply_mlp(int layer, int local_expert, std::int64_t rows) {
    const Packed& up = packed(Weight::up, layer, local_expert);
    const Packed& down = packed(Weight::down, layer, local_expert);
    for (std::int64_t t = 0; t < rows; t += compute::tile_rows) {
      const std::int64_t n = std::min<std::int64_t>(compute::tile_rows, rows - t);
      multiply(up, n);
      multiply(down, n);
    }
  }

  const comm::Communicator& world_;
  Sizes sizes_;
  ModelConfig config_;
  Groups groups_;
  Placement placement_;
  Timeline timeline_;
  BatchOptions batch_;
  std::unique_ptr<compute::Backend> backend_;
  std::unique_ptr<Driver> driver_;
  std::vector<RankLoad> loads_;
  std::vector<std::int64_t> before_;
  std::unique_ptr<compute::Gemm> gemm_;
  std::map<std::tuple<Weight, int, int>, Packed> packed_;  // (weight, layer, local expert)
  std::vector<std::uint16_t> a_, c_;
  std::vector<std::uint64_t> stream_;
};

void prefill(benchmark::State& state, Bench& bench) {
  const Sizes& sizes = bench.sizes();
  const std::int64_t tokens = std::int64_t{sizes.prompts} * sizes.prompt_tokens;
  const auto requests = bench.requests(sizes.prompts, 1);
  double prefill_s = 0;
  double gemm_s = 0;
  const auto run = [&] {
    Batch batch(requests, bench.batch_options());
    bench.world().barrier();
    double seconds = 0;
    for (double s = bench.run_pass(batch); s >= 0; s = bench.run_pass(batch)) seconds += s;
    return bench.slowest(seconds);
  };
  bench.take_expert_rows();
  run();  // warms up, and says how many rows each expert gets: the same ones every time
  const auto rows = bench.take_expert_rows();
  const auto gemms = [&] {
    bench.world().barrier();
    return bench.slowest(bench.time_gemms(tokens, rows, sizes.prompts));
  };
  for (auto _ : state) {
    // Before and after, since the speed of a shared machine drifts.
    const double before = gemms();
    const double seconds = run();
    const double after = gemms();
    state.SetIterationTime(seconds);
    prefill_s += seconds;
    gemm_s += (before + after) / 2;
  }
  state.counters["gemms_alone_over_prefill"] = gemm_s / prefill_s;
  state.counters["tokens_per_s"] =
      static_cast<double>(tokens * bench.world().size() * state.iterations()) / prefill_s;
}

void decode(benchmark::State& state, Bench& bench) {
  const Sizes& sizes = bench.sizes();
  const auto requests = bench.requests(sizes.sequences, 1 + sizes.decode_passes);
  double decode_s = 0;
  double ideal_s = 0;
  double bandwidth = 0;
  for (auto _ : state) {
    Batch batch(requests, bench.batch_options());
    // Prompts first, untimed: they also bring every rank to the same number of sequences.
    while (batch.batcher.load().decoding < sizes.sequences) bench.run_pass(batch);
    bandwidth = bench.memory_bandwidth();
    bench.take_expert_rows();
    double bytes = 0;
    double seconds = 0;
    for (int i = 0; i < sizes.decode_passes; ++i) {
      bench.world().barrier();
      seconds += bench.slowest(bench.run_pass(batch));
      const std::int64_t context = std::int64_t{sizes.sequences} * (sizes.prompt_tokens + i + 1);
      bytes +=
          bench.slowest(static_cast<double>(bench.pass_bytes(bench.take_expert_rows(), context)));
    }
    bandwidth = (bandwidth + bench.memory_bandwidth()) / 2;
    const double ideal = bytes / bandwidth;
    state.SetIterationTime(seconds);
    decode_s += seconds;
    ideal_s += ideal;
  }
  state.counters["memory_time_over_decode"] = ideal_s / decode_s;
  state.counters["memory_GB_per_s_per_rank"] = bandwidth / 1e9;
  state.counters["tokens_per_s"] = static_cast<double>(sizes.sequences * sizes.decode_passes *
                                                       bench.world().size() * state.iterations()) /
                                   decode_s;
}

/// Ranks other than the first run the same benchmarks in silence.
class Silent : public benchmark::BenchmarkReporter {
 public:
  bool ReportContext(const Context& /*context*/) override { return true; }
  void ReportRuns(const std::vector<Run>& /*runs*/) override {}
};

int run(int argc, char** argv) {
  omp_set_num_threads(1);  // the GEMMs alone use as many cores as a rank of the run
  Sizes sizes;
  std::vector<char*> rest;
  for (int i = 0; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (argument == "--tiny") {
      sizes = {.preset = "moe-4l-tiny",
               .prompts = 2,
               .prompt_tokens = 40,
               .sequences = 3,
               .decode_passes = 4,
               .chunks = 2,
               .repetitions = 1};
    } else if (argument.starts_with("--chunks=")) {
      sizes.chunks = std::stoi(std::string(argument.substr(9)));
    } else {
      rest.push_back(argv[i]);
    }
  }
  int count = static_cast<int>(rest.size());
  benchmark::Initialize(&count, rest.data());
  if (benchmark::ReportUnrecognizedArguments(count, rest.data())) return 2;
  const comm::Communicator world = comm::Communicator::world();
  Bench bench(world, sizes);
  for (const auto& [name, function] :
       {std::pair{"prefill", &prefill}, std::pair{"decode", &decode}}) {
    // A fixed number of iterations: all ranks must run the same.
    benchmark::RegisterBenchmark(name, [&bench, f = function](benchmark::State& s) { f(s, bench); })
        ->Iterations(1)
        ->Repetitions(sizes.repetitions)
        ->UseManualTime()
        ->Unit(benchmark::kMillisecond);
  }
  Silent silent;
  if (world.rank() == 0) {
    benchmark::RunSpecifiedBenchmarks();
  } else {
    benchmark::RunSpecifiedBenchmarks(&silent);
  }
  benchmark::Shutdown();
  return 0;
}

}  // namespace
}  // namespace atl

int main(int argc, char** argv) {
  const atl::comm::Environment mpi(&argc, &argv);
  try {
    return atl::run(argc, argv);
  } catch (const std::exception& error) {
    fmt::print(stderr, "inference_bench: {}\n", error.what());
    atl::comm::Communicator::world().abort(1);
  }
}
