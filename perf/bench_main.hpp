#pragma once
// What the multi-rank Google Benchmark programs share: their own options beside the library's, a
// reporter that is silent on all ranks but the first, and a main that ends all ranks on an error.

#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <string_view>
#include <vector>

#include "comm/communicator.hpp"
#include "comm/environment.hpp"
#include "comm/watchdog.hpp"

namespace atl::perf {

inline constexpr double wait_limit_s = 300;  ///< for other ranks

/// Ranks other than the first run the same benchmarks in silence.
class Silent : public benchmark::BenchmarkReporter {
 public:
  bool ReportContext(const Context& /*context*/) override { return true; }
  void ReportRuns(const std::vector<Run>& /*runs*/) override {}
};

/// Takes `--tiny` and hands the rest to Google Benchmark; then `add(world, tiny)` registers the
/// benchmarks, and all of them run. Returns main's exit code.
template <class Add>
int bench_main(const char* name, int argc, char** argv, Add add) {
  comm::Watchdog watchdog;
  const comm::Environment mpi(&argc, &argv);
  const auto world = comm::Communicator::world();
  try {
    watchdog.connect(world);
    comm::watched::stage("the measurement", wait_limit_s, /*work_may_last=*/true);
    bool tiny = false;
    std::vector<char*> rest;
    for (int i = 0; i < argc; ++i) {
      const std::string_view word = argv[i];
      if (word == "--tiny") {
        tiny = true;
      } else if (world.rank() == 0 || !word.starts_with("--benchmark_out")) {
        rest.push_back(argv[i]);  // one rank writes the file
      }
    }
    int count = static_cast<int>(rest.size());
    benchmark::Initialize(&count, rest.data());
    if (benchmark::ReportUnrecognizedArguments(count, rest.data())) return 2;
    add(world, tiny);
    Silent silent;
    if (world.rank() == 0) {
      benchmark::RunSpecifiedBenchmarks();
    } else {
      benchmark::RunSpecifiedBenchmarks(&silent);
    }
    benchmark::Shutdown();
    return 0;
  } catch (const std::exception& error) {
    watchdog.abort(world, fmt::format("{}: {}", name, error.what()));
  }
}

}  // namespace atl::perf
