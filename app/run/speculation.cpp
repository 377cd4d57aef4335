#include "app/run/speculation.hpp"

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <span>

namespace atl {

using nlohmann::json;

std::string why_no_speculation(const RunOptions& options) {
  if (options.speculate == 0) return "";
  if (options.mode == Mode::score) return "--mode score";
  // A guessed token has no place in what is written, given or counted of each token.
  if (!options.record_routing.empty()) return "--record-routing";
  if (!options.replay_routing.empty()) return "--replay-routing";
  if (!options.dump_activations.empty()) return "--dump-activations";
  if (options.balance != Balance::none) {
    return options.balance == Balance::bias ? "--balance bias" : "--balance replicate";
  }
  return "";
}

json gather_speculation_report(const comm::Communicator& world, const RunOptions& options,
                               bool speaks, const SpeculationCounts& mine) {
  std::int64_t sums[] = {mine.alone, mine.proposed, mine.accepted};
  if (!speaks) std::fill(std::begin(sums), std::end(sums), 0);
  world.allreduce(std::span(sums), comm::Communicator::Reduce::sum);
  if (world.rank() != 0) return nullptr;
  const std::string why_not = why_no_speculation(options);
  json report = {{"at_once", why_not.empty() ? options.speculate : 0},
                 {"not_used_for", why_not.empty() ? json(nullptr) : json(why_not)},
                 {"proposed", sums[1]},
                 {"accepted", sums[2]},
                 {"tokens_per_pass", nullptr}};
  if (sums[0] > 0) {
    report["tokens_per_pass"] =
        static_cast<double>(sums[0] + sums[2]) / static_cast<double>(sums[0]);
  }
  return report;
}

}  // namespace atl
