// `atoll run` on a machine of stated rates: the program itself, with the same results, whose
// arithmetic takes as long as it would there while messages go over the links that there are. What
// its report says of time holds as long as the cores are not too busy: it ends with a line on that.
//
//   mpirun -n 16 build/cpu/perf/paced_run FLOPS_PER_S BYTES_PER_S --model m.h5 ... [options of run]

#include <fmt/format.h>

#include <charconv>
#include <cstring>
#include <vector>

#include "app/config.hpp"
#include "app/run/run.hpp"
#include "comm/communicator.hpp"
#include "comm/environment.hpp"
#include "comm/watchdog.hpp"
#include "perf/machine.hpp"
#include "perf/paced_over.hpp"

namespace atl::perf {
namespace {

double rate_of(const char* text) {
  double rate = 0;
  const char* end = text + std::strlen(text);
  const auto [stop, error] = std::from_chars(text, end, rate);
  if (error != std::errc() || stop != end || !(rate > 0)) {
    throw UsageError(fmt::format("{} is no rate; give operations and bytes per second", text));
  }
  return rate;
}

int run(const comm::Communicator& world, int argc, char** argv) {
  if (argc < 3) {
    throw UsageError(
        "which rates? Give operations and bytes per second, then options of atoll run");
  }
  const MachineRates rates{rate_of(argv[1]), rate_of(argv[2])};
  std::vector<const char*> arguments = {"atoll", "run"};
  arguments.insert(arguments.end(), argv + 3, argv + argc);
  const CommandLine line = parse_command_line(static_cast<int>(arguments.size()), arguments.data());
  const CoreSeconds before = CoreSeconds::now();
  run_job(world, line.run,
          [&](std::unique_ptr<compute::Backend> backend,
              const compute::BackendOptions& options) -> std::unique_ptr<compute::Backend> {
            return std::make_unique<PacedOver>(std::move(backend), options, rates);
          });
  if (world.rank() == 0) {
    fmt::print("cores busy, set-up included: {:.0f} %\n",
               100 * CoreSeconds::now().busy_since(before));
  }
  return 0;
}

}  // namespace
}  // namespace atl::perf

int main(int argc, char** argv) {
  using namespace atl;
  comm::Watchdog watchdog;
  const comm::Environment environment(&argc, &argv);
  const comm::Communicator world = comm::Communicator::world();
  try {
    watchdog.connect(world);
    return perf::run(world, argc, argv);
  } catch (const comm::AgreedFailure& failure) {
    if (failure.reporter()) fmt::print(stderr, "paced_run: {}\n", failure.what());
    return failure.exit_code();
  } catch (const std::exception& error) {
    fmt::print(stderr, "paced_run: {}\n", error.what());
    if (world.size() > 1) watchdog.abort(world, error.what());
    return 1;
  }
}
