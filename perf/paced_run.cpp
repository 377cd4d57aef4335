// `atoll run` on a machine of stated rates: the program itself, with the same results, whose
// arithmetic takes as long as it would there while messages go over the links that there are. What
// its report says of time holds as long as the cores are not too busy: it ends with a line on that.
//
//   mpirun -n 16 build/cpu/perf/paced_run FLOPS_PER_S BYTES_PER_S [slow=RANK:TIMES] --model m.h5
//   ...
//
// and further options of run. With slow= one rank takes so many times as long as the others.

#include <fmt/format.h>

#include <charconv>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "app/config.hpp"
#include "app/run/run.hpp"
#include "comm/communicator.hpp"
#include "perf/machine.hpp"
#include "perf/mpi_program.hpp"
#include "perf/paced_over.hpp"

namespace atl::perf {
namespace {

constexpr std::string_view slow_word = "slow=";

double rate_of(const char* text) {
  double rate = 0;
  const char* end = text + std::strlen(text);
  const auto [stop, error] = std::from_chars(text, end, rate);
  if (error != std::errc() || stop != end || !(rate > 0)) {
    throw UsageError(fmt::format("{} is no rate; give operations and bytes per second", text));
  }
  return rate;
}

/// Of this rank, after the word that makes one slow: "slow=RANK:TIMES".
MachineRates slowed(MachineRates rates, std::string_view word, int rank) {
  word.remove_prefix(slow_word.size());
  const std::size_t colon = word.find(':');
  if (colon == std::string_view::npos) throw UsageError("slow= takes a rank and how many times");
  const double times = rate_of(std::string(word.substr(colon + 1)).c_str());
  if (rank != static_cast<int>(rate_of(std::string(word.substr(0, colon)).c_str()))) return rates;
  return {rates.flops_per_s / times, rates.bytes_per_s / times};
}

int run(const comm::Communicator& world, int argc, char** argv) {
  if (argc < 3) {
    throw UsageError(
        "which rates? Give operations and bytes per second, then options of atoll run");
  }
  MachineRates rates{rate_of(argv[1]), rate_of(argv[2])};
  int first_option = 3;
  if (argc > first_option && std::string_view(argv[first_option]).starts_with(slow_word)) {
    rates = slowed(rates, argv[first_option++], world.rank());
  }
  std::vector<const char*> arguments = {"atoll", "run"};
  arguments.insert(arguments.end(), argv + first_option, argv + argc);
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
  return atl::perf::mpi_program("paced_run", argc, argv, atl::perf::run);
}
