// How close the CUDA backend comes to what the GPU can do, measured in the same run: the best rate
// that cuBLASLt reaches at 8192^3, and the bandwidth of a copy inside the device's memory.
//
//   exact/PRESET              one layer with attention: the same bits for 1, 7, 64, 500 and 4096
//                             rows, alone and twice over, and a few against the CPU backend; what
//                             the backend says of itself
//   gemm/PRESET/NAME/ROWS     one weight matrix times ROWS rows, by the backend's own plans; copies
//                             of the matrix in turn, larger than twice the L2 cache together; the
//                             algorithm, and what the fastest one would take that need not keep a
//                             row's bits
//   attention/PRESET/HOW      attention alone, prefill or decode, at contexts of 1,024 and 10,000
//   experts/PRESET/HOW        one rank's experts as 16 ranks see them: own rows and received ones
//   moe_layer/PRESET          router, experts and merge of 4096 tokens, all experts on this rank,
//                             two chunks in turn as the driver runs them
//   rows/PRESET               route, pack and merge (unpack) alone, against the copy
//   prefill/PRESET            one layer with attention, one sequence of 10,000 tokens
//   decode/PRESET/CONTEXT     one layer, 64 sequences, against the bytes it must read
//   sample/moe-16l/HOW        tokens from 64 rows of the whole vocabulary, greedy and by top-p,
//                             against reading the logits once; they are in the L2 cache, where the
//                             head leaves them
//
//   build/cuda/perf/gpu_bench --benchmark_filter=^attention/     one GPU, no MPI
//   build/cuda/perf/gpu_bench --tiny     seconds, also on the emulated device of the tests
//
// Each benchmark checks its results before it is timed, against plain loops or, of layers, bits
// with other numbers of rows; one that is wrong or fails is left out, the others still run, and the
// exit code is 1. Each prints a line for perf/gpu_check.sh's table (table_line.hpp) with its floor:
// what the two rates allow. Counters: of_best_gemm, of_copy (fractions of the two rates),
// roofline_of_best_gemm (the fraction that those rates allow: weights must be read, however few
// rows use them), the rest in the units of their names. Weights are random; a layer has a
// vocabulary of 256.

#include "perf/gpu_bench.hpp"

#include <fmt/format.h>

#include <cstdio>
#include <string_view>

#include "app/model/model_config.hpp"
#include "perf/gpu_ceilings.hpp"
#include "perf/gpu_layer.hpp"
#include "perf/table_line.hpp"

namespace atl::gpu_bench {

void tell(benchmark::State& state, const std::string& name, double seconds, double floor_seconds,
          const std::string& note) {
  state.counters["floor_ms"] = floor_seconds * 1e3;
  state.counters["fraction"] = floor_seconds / seconds;
  perf::tell_time(name, seconds, floor_seconds, note);
}

void add(Bench& bench, const std::string& name,
         const std::function<void(benchmark::State&, const std::string&)>& run) {
  benchmark::RegisterBenchmark(name.c_str(),
                               [name, &bench, run](benchmark::State& state) {
                                 try {
                                   if (!name.starts_with("gemm/")) bench.held = {};
                                   run(state, name);
                                 } catch (const std::exception& error) {
                                   bench.any_failed = true;
                                   fmt::print(stderr, "gpu_bench: {}: {}\n", name, error.what());
                                   perf::tell_failure(name, error.what());
                                   state.SkipWithError(error.what());
                                 }
                               })
      ->Iterations(1)
      ->UseManualTime()
      ->Unit(benchmark::kMillisecond);
}

namespace {

Sizes tiny_sizes() {
  Sizes tiny;
  tiny.suffix = "-tiny";
  tiny.cube = 64;
  tiny.copy_bytes = 1 << 16;
  tiny.tokens = 96;
  tiny.prompt_tokens = 150;
  tiny.sequences = 4;
  tiny.contexts = {70};
  tiny.repetitions = 1;
  tiny.gemm_rows = {96, 8};
  tiny.exact_rows = {1, 7};
  tiny.chunks = {1, 2};
  tiny.rotation_bytes = 1 << 18;
  return tiny;
}

/// Checks kernels that move memory, and times them against a copy.
template <class Kernels>
void time_bytes(benchmark::State& state, const Bench& bench, const std::string& name,
                Kernels& kernels) {
  kernels.check();
  double seconds = 0;
  for (auto _ : state) {
    seconds = kernels.seconds(bench.sizes.repetitions);
    state.SetIterationTime(seconds);
  }
  const double rate = kernels.bytes() / seconds;
  state.counters["GB_per_s"] = rate / 1e9;
  state.counters["of_copy"] = rate / bench.copy_rate;
  tell(state, name, seconds, bench.floor(0, kernels.bytes()));
}

void rows(benchmark::State& state, const Bench& bench, const std::string& name,
          const std::string& preset) {
  const ModelConfig config = one_layer(preset + bench.sizes.suffix);
  RowKernels kernels(config.shape, config.dtype, bench.sizes.tokens);
  time_bytes(state, bench, name, kernels);
}

void sample(benchmark::State& state, const Bench& bench, const std::string& name,
            const SamplingOptions& options) {
  SampleKernel kernel(bench.sizes.sequences, preset("moe-16l" + bench.sizes.suffix).shape.vocab,
                      options);
  time_bytes(state, bench, name, kernel);
}

void gemm(benchmark::State& state, Bench& bench, const std::string& name, const std::string& preset,
          std::size_t which, int num_rows) {
  if (bench.held.preset != preset) {
    bench.held = {};
    const ModelConfig config = one_layer(preset + bench.sizes.suffix);
    bench.held.gemms = std::make_unique<PresetGemms>(
        config.shape, config.dtype, bench.sizes.gemm_rows.front(), bench.sizes.rotation_bytes);
    bench.held.preset = preset;
  }
  PresetGemms& gemms = *bench.held.gemms;
  gemms.check(which, num_rows);
  // Few rows take some microseconds: enough in a row that a launch's own time does not decide.
  const int repetitions = bench.sizes.repetitions * (num_rows < 1024 ? 4 : 1);
  double seconds = 0;
  for (auto _ : state) {
    seconds = gemms.seconds(which, num_rows, repetitions);
    state.SetIterationTime(seconds);
  }
  const double fastest = gemms.fastest_seconds(which, num_rows, repetitions);
  const double flops = gemms.flops(which, num_rows);
  const double bytes = gemms.bytes(which, num_rows);
  state.counters["TFLOP_per_s"] = flops / seconds / 1e12;
  state.counters["of_best_gemm"] = flops / seconds / bench.gemm_rate;
  state.counters["of_copy"] = bytes / seconds / bench.copy_rate;
  state.counters["fastest_ms"] = fastest * 1e3;
  state.counters["weight_copies"] = gemms.copies(which);
  const std::string dependent = gemms.row_dependent();
  tell(state, name, seconds, bench.floor(flops, bytes),
       fmt::format("{}; fastest proposed {:.4g} ms{}", gemms.algorithm(which, num_rows),
                   fastest * 1e3, dependent.empty() ? "" : "; bits depend on rows: " + dependent));
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

void add_gemms(Bench& bench) {
  for (const std::string preset : {"moe-16l", "moe-61l", "moe-4l"}) {
    for (std::size_t which = 0; which < PresetGemms::names.size(); ++which) {
      for (const int num_rows : bench.sizes.gemm_rows) {
        add(bench, fmt::format("gemm/{}/{}/{}", preset, PresetGemms::names[which], num_rows),
            [&bench, preset, which, num_rows](benchmark::State& state, const std::string& name) {
              gemm(state, bench, name, preset, which, num_rows);
            });
      }
    }
  }
}

void add_kernels(Bench& bench) {
  for (const std::string preset : {"moe-16l", "moe-61l", "moe-4l"}) {
    add(bench, "rows/" + preset,
        [&bench, preset](benchmark::State& state, const std::string& name) {
          rows(state, bench, name, preset);
        });
  }
  const std::pair<const char*, SamplingOptions> ways[] = {{"greedy", {}},
                                                          {"top_p", {0.8, 0.95, 1}}};
  for (const auto& [way, options] : ways) {
    add(bench, fmt::format("sample/moe-16l/{}", way),
        [&bench, options = options](benchmark::State& state, const std::string& name) {
          sample(state, bench, name, options);
        });
  }
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
  perf::tell_fact("ceilings", fmt::format("{:.1f} TFLOP/s", bench.gemm_rate / 1e12),
                  fmt::format("copy {:.1f} GB/s, {}", bench.copy_rate / 1e9, bench.device.name));

  add_layers(bench);
  add_gemms(bench);
  add_attention(bench);
  add_experts(bench);
  add_kernels(bench);
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return bench.any_failed ? 1 : 0;
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
