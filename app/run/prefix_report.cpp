#include "app/run/prefix_report.hpp"

#include <fmt/format.h>

namespace atl {

using nlohmann::json;

std::string why_no_prefixes(const RunOptions& options) {
  if (options.share_prefixes == SharePrefixes::off) return "--share-prefixes off";
  // What is written of, or given to, each position of each request.
  if (!options.record_routing.empty()) return "--record-routing";
  if (!options.replay_routing.empty()) return "--replay-routing";
  if (!options.dump_activations.empty()) return "--dump-activations";
  if (options.balance == Balance::bias) return "--balance bias";
  // A request's weights are those with which it began, also for the first of its tokens.
  if (!options.control.empty() && options.update == UpdateMode::in_flight) {
    return "--update in-flight";
  }
  return "";
}

json gather_prefix_report(const comm::Communicator& world, const RunOptions& options, bool speaks,
                          const PrefixCounts& mine) {
  struct Numbers {
    PrefixCounts counts;
    std::int64_t speaks = 0;
  };
  const auto ranks = world.allgather(Numbers{mine, speaks ? 1 : 0});
  if (world.rank() != 0) return nullptr;
  const std::string why_not = why_no_prefixes(options);
  json owners = json::array();
  PrefixCounts sum;
  for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
    if (ranks[rank].speaks == 0) continue;
    const PrefixCounts& counts = ranks[rank].counts;
    sum.requests += counts.requests;
    sum.rows_saved += counts.rows_saved;
    sum.rows_computed += counts.rows_computed;
    owners.push_back({{"rank", rank},
                      {"requests", counts.requests},
                      {"tokens_saved", counts.rows_saved},
                      {"tokens_copied", counts.rows_copied},
                      {"tokens_computed", counts.rows_computed},
                      {"pages_dropped", counts.pages_dropped}});
  }
  return {{"shared", why_not.empty()},
          {"not_shared_for", why_not.empty() ? json(nullptr) : json(why_not)},
          {"requests", sum.requests},
          {"tokens_saved", sum.rows_saved},
          {"tokens_computed", sum.rows_computed},
          {"owners", owners}};
}

}  // namespace atl
