// How close inference comes to what its arithmetic and its memory allow, on the `bench-cpu` preset:
//
//   prefill  time of the whole forward pass against the time its GEMMs alone take (same shapes,
//   same
//            rows, same weights' sizes, measured right before and after it in the same process);
//   decode   time of a step against the time to read the bytes it must read, at the memory
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
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "app/model/init.hpp"
#include "app/model/model_config.hpp"
#include "app/run/batch.hpp"
#include "app/run/driver.hpp"
#include "comm/communicator.hpp"
#include "compute/cpu/gemm.hpp"

namespace atl {
namespace {

constexpr int page_tokens = 64;

struct Sizes {
  std::string preset = "bench-cpu";
  int prompts = 4;  // per rank, prefill
  int prompt_tokens = 512;
  int sequences = 16;  // per rank, decode
  int decode_steps = 16;
  int chunks = 2;
  int repetitions = 7;
};

/// Makes one weight and hands it to `use`.
void with_weight(const std::string& path, std::int64_t rows, std::int64_t cols, DType dtype,
                 const std::function<void(const HostTensor&)>& use) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(rows * cols) * size_of(dtype));
  if (rows == 1) {  // norms are all ones
    const std::uint16_t one = dtype == DType::bfloat16 ? 0x3f80 : 0x3c00;
    std::fill_n(reinterpret_cast<std::uint16_t*>(bytes.data()), cols, one);
  } else {
    fill_random(0, path, 0, 1.0 / std::sqrt(static_cast<double>(cols)), dtype, bytes);
  }
  use({bytes.data(), dtype, rows, cols});
}

/// One rank's weights, backend and driver.
class Bench {
 public:
  Bench(const comm::Communicator& world, const Sizes& sizes)
      : world_(world),
        sizes_(sizes),
        config_(preset(sizes.preset)),
        placement_(contiguous_placement(config_.shape.num_experts, world.size())),
        timeline_(world.size(), 0, 0),
        gemm_(compute::make_gemm(config_.dtype, 1)) {
    compute::BackendOptions options;
    options.shape = config_.shape;
    options.dtype = config_.dtype;
    options.num_local_experts = static_cast<int>(own_experts().size());
    options.send_order = placement_.send_order;
    options.num_threads = 1;
    options.page_tokens = page_tokens;
    const int sequences = std::max(sizes_.sequences, sizes_.prompts);
    options.num_pages = sequences * (sizes_.prompt_tokens / page_tokens + 2);
    batch_.max_sequences = sequences;
    batch_.max_step_tokens = sizes_.prompts * sizes_.prompt_tokens;
    batch_.max_chunks = sizes_.chunks;
    batch_.page_tokens = page_tokens;
    batch_.num_pages = options.num_pages;
    options.max_chunk_tokens = batch_.max_step_tokens;
    backend_ = compute::make_cpu_backend(options);
    load();
    DriverOptions driver;
    driver.num_chunks = sizes_.chunks;
    driver.row_bytes = static_cast<std::size_t>(config_.shape.hidden) * size_of(config_.dtype);
    driver.max_head_rows = batch_.max_sequences;
    driver.max_chunk_tokens = options.max_chunk_tokens;
    driver_ =
        std::make_unique<Driver>(*backend_, world_, config_.shape, placement_, driver, timeline_);
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

  /// Runs one step if there is one; returns its seconds on this rank, or a negative number.
  double step(Batcher& batcher) {
    const double begin = now_seconds();
    loads_.resize(static_cast<std::size_t>(world_.size()));
    world_.allgather_into(batcher.load(), std::span(loads_));
    if (!batcher.next_step(loads_)) return -1;
    timeline_.begin_step(batcher.has_prompt_tokens() ? Phase::prefill : Phase::decode,
                         driver_->schedule(batcher.num_chunks()), begin, begin);
    driver_->run_step(batcher);
    timeline_.end_step(batcher.finish_step(0));
    const double seconds = now_seconds() - begin;
    if (timeline_.full()) timeline_.flush(world_);
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
      const auto l = static_cast<std::size_t>(layer);
      multiply(qkv_[l], tokens);
      multiply(o_[l], tokens);
      if (shape.is_dense(layer)) {
        multiply_mlp(dense_up_[l], dense_down_[l], tokens);
        continue;
      }
      multiply(router_[l], tokens);
      for (std::size_t e = 0; e < expert_rows[l].size(); ++e) {
        multiply_mlp(expert_up_[l][e], expert_down_[l][e], expert_rows[l][e]);
      }
    }
    multiply(head_, head_rows);
    return now_seconds() - begin;
  }

  /// Bytes of weights one decode step must read, and of keys and values at `context` tokens.
  std::int64_t step_bytes(const std::vector<std::vector<std::int64_t>>& expert_rows,
                          std::int64_t context) const {
    const ModelShape& shape = config_.shape;
    std::int64_t bytes = head_.bytes();
    for (std::size_t l = 0; l < qkv_.size(); ++l) {
      bytes += qkv_[l].bytes() + o_[l].bytes();
      if (shape.is_dense(static_cast<int>(l))) {
        bytes += dense_up_[l].bytes() + dense_down_[l].bytes();
        continue;
      }
      bytes += router_[l].bytes();
      for (std::size_t e = 0; e < expert_rows[l].size(); ++e) {
        if (expert_rows[l][e] > 0) bytes += expert_up_[l][e].bytes() + expert_down_[l][e].bytes();
      }
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

  const std::vector<int>& own_experts() const {
    return placement_.experts_of[static_cast<std::size_t>(world_.rank())];
  }

  /// Loads a weight into the backend and packs it a second time for the GEMMs alone.
  Packed both(compute::Weight weight, int layer, int expert, const std::string& path,
              std::int64_t rows, std::int64_t cols) {
    Packed packed;
    with_weight(path, rows, cols, config_.dtype, [&](const HostTensor& tensor) {
      backend_->load_weight(weight, layer, expert, tensor);
      if (rows == 1) return;
      packed = gemm_->pack(tensor.data, static_cast<int>(rows), static_cast<int>(cols));
      gemm_->prepare(packed, compute::Finish::rounded);
    });
    return packed;
  }

  void load() {
    using compute::Weight;
    const ModelShape& s = config_.shape;
    require(s.activation == Activation::gelu_tanh && s.qk_norm == QkNorm::none,
            "preset {} has another structure than this benchmark's GEMMs", sizes_.preset);
    with_weight("embedding", s.vocab, s.hidden, config_.dtype,
                [&](const HostTensor& t) { backend_->load_weight(Weight::embedding, -1, -1, t); });
    const auto layers = static_cast<std::size_t>(s.num_layers);
    dense_up_.resize(layers);
    dense_down_.resize(layers);
    router_.resize(layers);
    expert_up_.resize(layers);
    expert_down_.resize(layers);
    for (int layer = 0; layer < s.num_layers; ++layer) {
      const auto l = static_cast<std::size_t>(layer);
      const std::string name = std::to_string(layer) + "/";
      both(Weight::attention_norm, layer, -1, name + "norm1", 1, s.hidden);
      both(Weight::ffn_norm, layer, -1, name + "norm2", 1, s.hidden);
      qkv_.push_back(
          both(Weight::qkv, layer, -1, name + "qkv", s.q_width() + 2 * s.kv_width(), s.hidden));
      o_.push_back(both(Weight::o, layer, -1, name + "o", s.hidden, s.q_width()));
      if (s.is_dense(layer)) {
        dense_up_[l] = both(Weight::up, layer, -1, name + "up", s.intermediate, s.hidden);
        dense_down_[l] = both(Weight::down, layer, -1, name + "down", s.hidden, s.intermediate);
        continue;
      }
      router_[l] = both(Weight::router, layer, -1, name + "router", s.num_experts, s.hidden);
      for (std::size_t e = 0; e < own_experts().size(); ++e) {
        const std::string expert = name + std::to_string(own_experts()[e]);
        expert_up_[l].push_back(both(Weight::up, layer, static_cast<int>(e), expert + "up",
                                     s.moe_intermediate, s.hidden));
        expert_down_[l].push_back(both(Weight::down, layer, static_cast<int>(e), expert + "down",
                                       s.hidden, s.moe_intermediate));
      }
    }
    both(Weight::final_norm, -1, -1, "norm", 1, s.hidden);
    head_ = both(Weight::lm_head, -1, -1, "head", s.vocab, s.hidden);
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
  void multiply_mlp(const Packed& up, const Packed& down, std::int64_t rows) {
    for (std::int64_t t = 0; t < rows; t += compute::tile_rows) {
      const std::int64_t n = std::min<std::int64_t>(compute::tile_rows, rows - t);
      multiply(up, n);
      multiply(down, n);
    }
  }

  const comm::Communicator& world_;
  Sizes sizes_;
  ModelConfig config_;
  Placement placement_;
  Timeline timeline_;
  BatchOptions batch_;
  std::unique_ptr<compute::Backend> backend_;
  std::unique_ptr<Driver> driver_;
  std::vector<RankLoad> loads_;
  std::vector<std::int64_t> before_;
  std::unique_ptr<compute::Gemm> gemm_;
  std::vector<Packed> qkv_, o_, dense_up_, dense_down_, router_;
  std::vector<std::vector<Packed>> expert_up_, expert_down_;
  Packed head_;
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
    Batcher batcher(requests, bench.batch_options(), bench.world().rank());
    bench.world().barrier();
    double seconds = 0;
    for (double s = bench.step(batcher); s >= 0; s = bench.step(batcher)) seconds += s;
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
  const auto requests = bench.requests(sizes.sequences, 1 + sizes.decode_steps);
  double decode_s = 0;
  double ideal_s = 0;
  double bandwidth = 0;
  for (auto _ : state) {
    Batcher batcher(requests, bench.batch_options(), bench.world().rank());
    // Prompts first, untimed: they also bring every rank to the same number of sequences.
    while (batcher.load().decoding < sizes.sequences) bench.step(batcher);
    bandwidth = bench.memory_bandwidth();
    bench.take_expert_rows();
    double bytes = 0;
    double seconds = 0;
    for (int i = 0; i < sizes.decode_steps; ++i) {
      bench.world().barrier();
      seconds += bench.slowest(bench.step(batcher));
      const std::int64_t context = std::int64_t{sizes.sequences} * (sizes.prompt_tokens + i + 1);
      bytes +=
          bench.slowest(static_cast<double>(bench.step_bytes(bench.take_expert_rows(), context)));
    }
    bandwidth = (bandwidth + bench.memory_bandwidth()) / 2;
    const double ideal = bytes / bandwidth;
    state.SetIterationTime(seconds);
    decode_s += seconds;
    ideal_s += ideal;
  }
  state.counters["memory_time_over_decode"] = ideal_s / decode_s;
  state.counters["memory_GB_per_s_per_rank"] = bandwidth / 1e9;
  state.counters["tokens_per_s"] = static_cast<double>(sizes.sequences * sizes.decode_steps *
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
               .decode_steps = 4,
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
