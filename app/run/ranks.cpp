#include "app/run/ranks.hpp"

namespace atl {

namespace {

/// A rank takes no more than it was told, and no more than there is.
void limit_memory(double gigabytes, Ranks& ranks) {
  const double limit = gigabytes * 1e9;
  if (limit <= 0) return;
  ranks.memory_stated = limit < ranks.memory().bytes || ranks.memory().bytes <= 0;
  if (!ranks.memory_stated) return;
  if (ranks.choice.cuda) {
    ranks.choice.share.memory_bytes = static_cast<std::int64_t>(limit);
  } else {
    ranks.given.mine.memory_bytes = limit;
    ranks.given.mine.memory_by = "--memory-limit";
  }
}

}  // namespace

RankMemory Ranks::memory() const {
  if (choice.cuda) {
    return {static_cast<double>(choice.share.memory_bytes), memory_stated ? "--memory-limit" : "",
            true, memory_stated};
  }
  return {given.mine.memory_bytes, given.mine.memory_by, false, memory_stated};
}

Ranks find_ranks(const comm::Communicator& world, const RunOptions& options) {
  Ranks ranks;
  ranks.topology = comm::discover_topology(world);
  ranks.given = comm::find_allotment(world, ranks.topology);
  ranks.threads = options.threads > 0 ? options.threads : ranks.given.mine.threads();
  ranks.choice = choose_backend(world, ranks.topology, options.backend);
  limit_memory(options.memory_gb, ranks);
  return ranks;
}

void find_links(const comm::Communicator& world, const RunOptions& options, Ranks& ranks) {
  const bool choose = ranks.topology.num_nodes() > 1 && (!options.route || !options.chunks);
  if (!options.measure_links && options.cluster.empty() && !choose) return;
  ranks.cluster = find_cluster(world, ranks.topology, options.cluster, options.measure_links);
}

}  // namespace atl
