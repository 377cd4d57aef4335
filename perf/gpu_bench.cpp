// How close the CUDA backend comes to what the GPU can do, measured in the same run: the best rate
// that cuBLASLt reaches at 8192^3, and the bandwidth of a copy inside the device's memory.
//
//   gemm/PRESET/NAME/ROWS     one weight matrix times ROWS rows, by the backend's own plans; copies
//                             of the matrix in turn, larger than twice the L2 cache together
//   moe_layer/PRESET          router, experts and merge of 4096 tokens, all experts on this rank,
//                             two chunks in turn as the driver runs them
//   rows/PRESET               route, pack and merge (unpack) alone, against the copy
//   prefill/moe-16l           one layer with attention, one sequence of 10,000 tokens
//   decode/moe-16l            one layer, 64 sequences, against the bytes it must read
//   sample/moe-16l/HOW        tokens from 64 rows of the whole vocabulary, greedy and by top-p,
//                             against reading the logits once; they are in the L2 cache, where the
//                             head leaves them
//
//   build/cuda/perf/gpu_bench            about two minutes on one GPU, no MPI
//   build/cuda/perf/gpu_bench --tiny     seconds, also on the emulated device of the tests
//
// Each benchmark checks its results before it is timed, against the CPU backend or plain loops; one
// that is wrong or fails is left out, the others still run, and the exit code is 1. Counters:
// of_best_gemm, of_copy (fractions of the two rates), roofline_of_best_gemm (the fraction that
// those rates allow: weights must be read, however few rows use them), the rest in the units of
// their names. Weights are random; a layer has a vocabulary of 256.

#include <benchmark/benchmark.h>
#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <functional>
#include <map>
#include <optional>
#include <string_view>

#include "app/model/model_config.hpp"
#include "compute/clock.hpp"
#include "compute/cuda/backend.hpp"
#include "perf/gpu_layer.hpp"
#include "perf/gpu_rates.hpp"

namespace atl::gpu_bench {
namespace {

struct Sizes {
  std::string suffix;  // of the presets
  int cube = 8192;
  std::size_t copy_bytes = std::size_t{1} << 30;
  int tokens = 4096;
  int prompt_tokens = 10000;
  int sequences = 64;
  int context = 1024;
  int repetitions = 10;
  std::vector<int> gemm_rows = {4096, 512, 64, 8};
  std::int64_t rotation_bytes = 0;  // of weights in turn; 0: twice the L2 cache
};

Sizes tiny_sizes() {
  return {"-tiny", 64, 1 << 16, 96, 150, 4, 64, 1, {96, 8}, 1 << 18};
}

/// What all measurements share.
struct Bench {
  Sizes sizes;
  compute::CudaDevice device;
  double gemm_rate = 0;  // FLOP/s
  double copy_rate = 0;  // bytes/s, read and written
};

/// One preset's layer on the GPU, checked once against the CPU backend.
class Layer {
 public:
  Layer(const Bench& bench, const std::string& name, int max_tokens, std::int64_t num_pages)
      : config_(one_layer(name + bench.sizes.suffix)), weights_(config_) {
    backend_ = compute::make_cuda_backend(options_for(config_, max_tokens, num_pages, 2),
                                          {bench.device, 1, 0});
    load_layer(*backend_, config_, weights_);
    check(std::min(48, max_tokens), max_tokens);
  }

  compute::Backend& backend() { return *backend_; }
  const ModelConfig& config() const { return config_; }
  double seconds(compute::Event event) {
    backend_->finish(event);
    const compute::Interval i = backend_->interval(event);
    return i.end - i.begin;
  }

 private:
  /// The layer's logits of a few tokens against the CPU backend, and the same tokens among many.
  void check(int rows, int max_tokens) {
    compute::BackendOptions options =
        options_for(config_, rows, (rows + page_tokens - 1) / page_tokens, 1);
    options.num_threads = omp_get_max_threads();
    const auto cpu = compute::make_cpu_backend(options);
    load_layer(*cpu, config_, weights_);
    const auto run = [&](compute::Backend& backend, int tokens) {
      Passage passage(backend, config_);
      passage.fill(0, 1, tokens, 0, tokens);
      backend.finish(passage.layer().back());
      return passage.logits(rows);
    };
    const std::vector<float> expected = run(*cpu, rows);
    const std::vector<float> few = run(*backend_, rows);
    const std::vector<float> many = run(*backend_, max_tokens);
    // Logits have deviation 1 here. Rounding to 8 bits at each step moves them by about 0.01; a
    // token whose second and third expert are nearly tied may go elsewhere and moves by more.
    constexpr double tolerance = 0.05;
    const double off = mean_difference(few, expected);
    require(off < tolerance, "the layer's logits are {} off the CPU backend's on average", off);
    const double moved = mean_difference(many, few);
    require(moved < tolerance, "{} tokens together change logits by {} on average", max_tokens,
            moved);
  }

  ModelConfig config_;
  Weights weights_;
  std::unique_ptr<compute::Backend> backend_;
};

double expert_flops(const ModelShape& s, double tokens) {
  return tokens * s.top_k * 4.0 * s.hidden * s.moe_intermediate;
}

/// Of the weights of router and all experts.
double moe_weight_bytes(const ModelConfig& config) {
  const ModelShape& s = config.shape;
  return static_cast<double>(size_of(config.dtype)) * s.num_experts * s.hidden *
         (1 + 2.0 * s.moe_intermediate);
}

void moe_layer(benchmark::State& state, const Bench& bench, const std::string& name) {
  const int tokens = bench.sizes.tokens;
  Layer layer(bench, name, tokens, (tokens + page_tokens - 1) / page_tokens);
  const ModelShape& s = layer.config().shape;
  std::vector<Passage> chunks;
  std::vector<compute::Event> routed(2);
  for (int i = 0; i < 2; ++i) {
    chunks.emplace_back(layer.backend(), layer.config());
    chunks.back().fill(i, 1, tokens, 0, tokens);
  }
  // One chunk's counts come to the host while the other's experts run.
  const auto rounds = [&](int count) {
    const double begin = now_seconds();
    for (std::size_t i = 0; i < 2; ++i) {
      chunks[i].embed();
      routed[i] = chunks[i].route();
    }
    compute::Event last = 0;
    for (int round = 0; round < count; ++round) {
      for (std::size_t i = 0; i < 2; ++i) {
        layer.backend().finish(routed[i]);
        chunks[i].experts();
        last = chunks[i].merge();
        if (round + 1 < count) {
          chunks[i].embed();
          routed[i] = chunks[i].route();
        }
      }
    }
    layer.backend().finish(last);
    return (now_seconds() - begin) / (2 * count);
  };
  rounds(2);  // warms up
  double total = 0;
  for (auto _ : state) {
    const double seconds = rounds(bench.sizes.repetitions);
    state.SetIterationTime(seconds);
    total += seconds;
  }
  const double flops = expert_flops(s, tokens) + 2.0 * tokens * s.hidden * s.num_experts;
  const double rate = flops * static_cast<double>(state.iterations()) / total;
  state.counters["TFLOP_per_s"] = rate / 1e12;
  state.counters["of_best_gemm"] = rate / bench.gemm_rate;
  // Reading alone: about as fast as a copy, which reads and writes.
  const double reading = moe_weight_bytes(layer.config()) / bench.copy_rate;
  state.counters["roofline_of_best_gemm"] =
      std::min(1.0, flops / bench.gemm_rate / std::max(reading, 1e-30));
}

/// Checks kernels that move memory, and times them against a copy.
template <class Kernels>
void time_bytes(benchmark::State& state, const Bench& bench, Kernels& kernels) {
  kernels.check();
  double total = 0;
  for (auto _ : state) {
    const double seconds = kernels.seconds(bench.sizes.repetitions);
    state.SetIterationTime(seconds);
    total += seconds;
  }
  const double rate = kernels.bytes() * static_cast<double>(state.iterations()) / total;
  state.counters["GB_per_s"] = rate / 1e9;
  state.counters["of_copy"] = rate / bench.copy_rate;
}

void rows(benchmark::State& state, const Bench& bench, const std::string& name) {
  const ModelConfig config = one_layer(name + bench.sizes.suffix);
  RowKernels kernels(config.shape, config.dtype, bench.sizes.tokens);
  time_bytes(state, bench, kernels);
}

void sample(benchmark::State& state, const Bench& bench, const std::string& name,
            const SamplingOptions& options) {
  SampleKernel kernel(bench.sizes.sequences, preset(name + bench.sizes.suffix).shape.vocab,
                      options);
  time_bytes(state, bench, kernel);
}

/// Seconds of one part of the layer, and what they would be at the device's measured rates.
struct Part {
  const char* name;
  double seconds;
  double ideal;
};

/// Adds up the parts and names the one that loses most.
void report(benchmark::State& state, const std::vector<Part>& parts) {
  const Part* largest = parts.data();
  for (const Part& part : parts) {
    state.counters[fmt::format("{}_ms", part.name)] = part.seconds * 1e3;
    if (part.seconds - part.ideal > largest->seconds - largest->ideal) largest = &part;
  }
  state.SetLabel(fmt::format("largest loss: {} ({:.3f} ms, {:.3f} at the measured rates)",
                             largest->name, largest->seconds * 1e3, largest->ideal * 1e3));
}

/// Best of some runs of the whole layer; `events` holds those of the best run's steps.
double best_run(const Bench& bench, Layer& layer, Passage& passage,
                std::array<double, 4>& of_steps) {
  double best = 1e30;
  for (int i = 0; i <= bench.sizes.repetitions; ++i) {
    const double begin = now_seconds();
    const std::vector<compute::Event> events = passage.layer();
    layer.backend().finish(events.back());
    const double seconds = now_seconds() - begin;
    if (i == 0 || seconds >= best) continue;  // the first one warms up
    best = seconds;
    for (std::size_t step = 0; step < 4; ++step) of_steps[step] = layer.seconds(events[step]);
  }
  return best;
}

void prefill(benchmark::State& state, const Bench& bench, const std::string& name) {
  const int tokens = bench.sizes.prompt_tokens;
  Layer layer(bench, name, tokens, (tokens + page_tokens - 1) / page_tokens);
  const ModelShape& s = layer.config().shape;
  Passage passage(layer.backend(), layer.config());
  passage.fill(0, 1, tokens, 0, tokens);
  std::array<double, 4> steps{};
  double best = 0;
  for (auto _ : state) {
    best = best_run(bench, layer, passage, steps);
    state.SetIterationTime(best);
  }
  const double projections = 2.0 * tokens * s.hidden * (2.0 * s.q_width() + 2.0 * s.kv_width());
  const double scores = 2.0 * tokens * (tokens + 1.0) * s.q_width();  // causal: half of 4 T^2
  const double router = 2.0 * tokens * s.hidden * s.num_experts;
  const double row_bytes = 2.0 * s.hidden * tokens;
  const double flops = projections + scores + router + expert_flops(s, tokens);
  report(state, {{"attention", steps[0], (projections + scores) / bench.gemm_rate},
                 {"route", steps[1], row_bytes * (2 + s.top_k) / bench.copy_rate},
                 {"experts", steps[2], expert_flops(s, tokens) / bench.gemm_rate},
                 {"merge", steps[3], row_bytes * (4 + s.top_k) / bench.copy_rate}});
  state.counters["tokens_per_s"] = tokens / best;
  state.counters["of_best_gemm"] = flops / best / bench.gemm_rate;
}

void decode(benchmark::State& state, const Bench& bench, const std::string& name) {
  const Sizes& sizes = bench.sizes;
  const int capacity = sizes.context + page_tokens;
  const std::int64_t pages = std::int64_t{sizes.sequences} * (capacity / page_tokens);
  const int together = std::max(1, sizes.tokens / sizes.context);
  Layer layer(bench, name, std::max(together * sizes.context, sizes.sequences), pages);
  const ModelShape& s = layer.config().shape;
  Passage passage(layer.backend(), layer.config());
  for (int first = 0; first < sizes.sequences; first += together) {
    passage.fill(first, std::min(together, sizes.sequences - first), sizes.context, 0, capacity);
    layer.backend().finish(passage.layer().back());
  }
  passage.fill(0, sizes.sequences, 1, sizes.context, capacity);
  std::array<double, 4> steps{};
  double best = 0;
  for (auto _ : state) {
    best = best_run(bench, layer, passage, steps);
    state.SetIterationTime(best);
  }
  const double element = static_cast<double>(size_of(layer.config().dtype));
  const double touched = static_cast<double>(std::count_if(
      passage.expert_counts().begin(), passage.expert_counts().end(), [](int n) { return n > 0; }));
  const double attention_bytes =
      element * (static_cast<double>(s.hidden) * (2.0 * s.q_width() + 2.0 * s.kv_width()) +
                 2.0 * sizes.sequences * (sizes.context + 1.0) * s.kv_width());
  const double expert_bytes = element * touched * 2.0 * s.hidden * s.moe_intermediate;
  const double router_bytes = element * s.num_experts * s.hidden;
  const double bytes = attention_bytes + expert_bytes + router_bytes;
  report(state, {{"attention", steps[0], attention_bytes / bench.copy_rate},
                 {"route", steps[1], router_bytes / bench.copy_rate},
                 {"experts", steps[2], expert_bytes / bench.copy_rate},
                 {"merge", steps[3], 0}});
  state.counters["tokens_per_s_per_layer"] = sizes.sequences / best;
  state.counters["of_copy"] = bytes / best / bench.copy_rate;
}

void gemm(benchmark::State& state, const Bench& bench, PresetGemms& gemms, std::size_t which,
          int num_rows) {
  gemms.check(which, num_rows);
  double total = 0;
  for (auto _ : state) {
    const double seconds = gemms.seconds(which, num_rows, bench.sizes.repetitions);
    state.SetIterationTime(seconds);
    total += seconds;
  }
  const double times = static_cast<double>(state.iterations()) / total;
  state.counters["TFLOP_per_s"] = gemms.flops(which, num_rows) * times / 1e12;
  state.counters["of_best_gemm"] = gemms.flops(which, num_rows) * times / bench.gemm_rate;
  state.counters["of_copy"] = gemms.bytes(which, num_rows) * times / bench.copy_rate;
  state.counters["weight_copies"] = gemms.copies(which);
}

/// The same function for each benchmark: timed by itself, once, in milliseconds. One that throws
/// does not end the others.
void add(const std::string& name, bool& any_failed,
         const std::function<void(benchmark::State&)>& run) {
  benchmark::RegisterBenchmark(name.c_str(),
                               [name, &any_failed, run](benchmark::State& state) {
                                 try {
                                   run(state);
                                 } catch (const std::exception& error) {
                                   any_failed = true;
                                   fmt::print(stderr, "gpu_bench: {}: {}\n", name, error.what());
                                   state.SkipWithError(error.what());
                                 }
                               })
      ->Iterations(1)
      ->UseManualTime()
      ->Unit(benchmark::kMillisecond);
}

/// What the device can do, told at once: a run that is cut short has it too.
void measure_device(Bench& bench) {
  bench.device = compute::open_cuda_device(0);
  bench.gemm_rate = best_gemm_rate(bench.sizes.cube);
  bench.copy_rate = copy_rate(bench.sizes.copy_bytes);
  std::int64_t& rotation = bench.sizes.rotation_bytes;
  if (rotation == 0) rotation = 2 * l2_bytes();
  const std::string weights = fmt::format("copies in turn over {:.1f} MiB (L2 cache: {:.1f} MiB)",
                                          static_cast<double>(rotation) / (1 << 20),
                                          static_cast<double>(l2_bytes()) / (1 << 20));
  const std::string gemm = fmt::format("{:.1f}", bench.gemm_rate / 1e12);
  const std::string copy = fmt::format("{:.1f}", bench.copy_rate / 1e9);
  fmt::print(stderr, "{}: best GEMM {} TFLOP/s, copy {} GB/s; weights of gemm/: {}\n",
             bench.device.name, gemm, copy, weights);
  std::fflush(stderr);
  benchmark::AddCustomContext("device", bench.device.name);
  benchmark::AddCustomContext("gemm_TFLOP_per_s", gemm);
  benchmark::AddCustomContext("copy_GB_per_s", copy);
  benchmark::AddCustomContext("gemm_weights", weights);
}

/// Of the presets, one preset's at a time.
struct Gemms {
  std::map<std::string, std::optional<PresetGemms>> of;
  void drop() {
    for (auto& [name, of_preset] : of) of_preset.reset();
  }
};

void add_gemms(Bench& bench, Gemms& gemms, bool& any_failed) {
  for (const char* name : {"moe-16l", "moe-61l", "moe-4l"}) {
    auto& of_preset = gemms.of[name];
    const ModelConfig config = one_layer(name + bench.sizes.suffix);
    for (std::size_t which = 0; which < PresetGemms::names.size(); ++which) {
      for (const int num_rows : bench.sizes.gemm_rows) {
        add(fmt::format("gemm/{}/{}/{}", name, PresetGemms::names[which], num_rows), any_failed,
            [&, config, which, num_rows](benchmark::State& state) {
              if (!of_preset) {
                gemms.drop();
                of_preset.emplace(config.shape, config.dtype, bench.sizes.gemm_rows.front(),
                                  bench.sizes.rotation_bytes);
              }
              gemm(state, bench, *of_preset, which, num_rows);
            });
      }
    }
  }
}

void add_layers(Bench& bench, Gemms& gemms, bool& any_failed) {
  for (const std::string name : {"moe-16l", "moe-61l"}) {
    add("moe_layer/" + name, any_failed, [&, name](benchmark::State& state) {
      gemms.drop();
      moe_layer(state, bench, name);
    });
    add("rows/" + name, any_failed,
        [&, name](benchmark::State& state) { rows(state, bench, name); });
  }
  add("prefill/moe-16l", any_failed,
      [&](benchmark::State& state) { prefill(state, bench, "moe-16l"); });
  add("decode/moe-16l", any_failed,
      [&](benchmark::State& state) { decode(state, bench, "moe-16l"); });
  add("sample/moe-16l/greedy", any_failed,
      [&](benchmark::State& state) { sample(state, bench, "moe-16l", {}); });
  add("sample/moe-16l/top_p", any_failed, [&](benchmark::State& state) {
    sample(state, bench, "moe-16l", {0.8, 0.95, 1});
  });
}

int run(int argc, char** argv) {
  Bench bench;
  std::vector<char*> rest;
  for (int i = 0; i < argc; ++i) {
    if (std::string_view(argv[i]) == "--tiny") {
      bench.sizes = tiny_sizes();
    } else {
      rest.push_back(argv[i]);
    }
  }
  int count = static_cast<int>(rest.size());
  benchmark::Initialize(&count, rest.data());
  if (benchmark::ReportUnrecognizedArguments(count, rest.data())) return 2;
  const compute::CudaDevices devices = compute::find_cuda_devices();
  if (devices.count == 0) {
    fmt::print("SKIPPED: {}\n", devices.why_none);
    return 77;
  }
  measure_device(bench);

  bool any_failed = false;
  Gemms gemms;
  add_gemms(bench, gemms, any_failed);
  add_layers(bench, gemms, any_failed);
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return any_failed ? 1 : 0;
}

}  // namespace
}  // namespace atl::gpu_bench

int main(int argc, char** argv) {
  try {
    return atl::gpu_bench::run(argc, argv);
  } catch (const std::exception& error) {
    fmt::print(stderr, "gpu_bench: {}\n", error.what());
    return 1;
  }
}
