#pragma once
// What the files of gpu_bench share: sizes, the device's measured rates, and how a benchmark is
// registered and told. gpu_bench.cpp says which there are.

#include <benchmark/benchmark.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "compute/cuda/backend.hpp"
#include "perf/gpu_rates.hpp"

namespace atl::gpu_bench {

struct Sizes {
  std::string suffix;  // of the presets
  int cube = 8192;
  std::size_t copy_bytes = std::size_t{1} << 30;
  int tokens = 4096;
  int prompt_tokens = 10000;
  int sequences = 64;
  std::vector<int> contexts = {1024, 10000};
  int repetitions = 10;
  std::vector<int> gemm_rows = {4096, 512, 64, 8};
  std::vector<int> exact_rows = {1, 7, 64, 500};  // beside all `tokens`
  std::vector<int> chunks = {1, 2, 4};            // of experts/.../ep16
  std::int64_t rotation_bytes = 0;                // of weights in turn; 0: twice the L2 cache
};

/// The GEMMs of one preset at a time: they take much memory.
struct HeldGemms {
  std::string preset;
  std::unique_ptr<PresetGemms> gemms;
};

/// What all measurements share.
struct Bench {
  Sizes sizes;
  compute::CudaDevice device;
  double gemm_rate = 0;  ///< FLOP/s
  double copy_rate = 0;  ///< bytes/s, read and written
  HeldGemms held;
  bool any_failed = false;

  /// Seconds that these take at least at the device's measured rates.
  double floor(double flops, double bytes) const {
    return std::max(flops / gemm_rate, bytes / copy_rate);
  }
};

/// What a benchmark found: a line of the table, and the JSON's counters `floor_ms` and `fraction`.
void tell(benchmark::State& state, const std::string& name, double seconds, double floor_seconds,
          const std::string& note = {});

/// Registers a benchmark that times itself, once. One that throws is told as failed and does not
/// end the others.
void add(Bench& bench, const std::string& name,
         const std::function<void(benchmark::State&, const std::string& name)>& run);

void add_layers(Bench& bench);     // gpu_layers.cpp
void add_experts(Bench& bench);    // gpu_experts.cpp
void add_attention(Bench& bench);  // gpu_attention.cpp

}  // namespace atl::gpu_bench
