#include "app/run/ranks.hpp"

namespace atl {

Ranks find_ranks(const comm::Communicator& world, const RunOptions& options) {
  Ranks ranks;
  ranks.topology = comm::discover_topology(world);
  ranks.given = comm::find_allotment(world, ranks.topology);
  ranks.threads = options.threads > 0 ? options.threads : ranks.given.mine.threads();
  ranks.choice = choose_backend(world, ranks.topology, options.backend);
  return ranks;
}

void find_links(const comm::Communicator& world, const RunOptions& options, Ranks& ranks) {
  const bool choose = ranks.topology.num_nodes() > 1 && (!options.route || !options.chunks);
  if (!options.measure_links && options.cluster.empty() && !choose) return;
  ranks.cluster = find_cluster(world, ranks.topology, options.cluster, options.measure_links);
}

}  // namespace atl
