// `atoll run` on a machine of stated rates: the program itself, with the same results, whose
// arithmetic takes as long as it would there while messages go over the links that there are. What
// its report says of time holds as long as the cores are not too busy: it ends with a line on that.
//
//   mpirun -n 16 build/cpu/perf/paced_run FLOPS_PER_S BYTES_PER_S [slow=RANK[-LAST]:TIMES] ...
//
// and further options of run. With slow= one rank, or all from one to another, take so many times
// as long as the others.

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

int rank_of(std::string_view text) {
  int rank = 0;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), rank);
  if (error != std::errc() || stop != text.data() + text.size() || rank < 0) {
    throw UsageError(fmt::format("slow= names \"{}\", which is no rank", text));
  }
  return rank;
}

/// Of this rank, after the word that makes some slow: "slow=RANK:TIMES" or "slow=FIRST-LAST:TIMES".
MachineRates slowed(MachineRates rates, std::string_view word, int rank) {
  word.remove_prefix(slow_word.size());
  const std::size_t colon = word.find(':');
  if (colon == std::string_view::npos) throw UsageError("slow= takes a rank and how many times");
  const double times = rate_of(std::string(word.substr(colon + 1)).c_str());
  const std::string_view ranks = word.substr(0, colon);
  const std::size_t dash = ranks.find('-');
  const int first = rank_of(ranks.substr(0, dash));
  const int last = dash == std::string_view::npos ? first : rank_of(ranks.substr(dash + 1));
  if (rank < first || rank > last) return rates;
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
