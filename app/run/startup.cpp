#include "app/run/startup.hpp"

#include <sys/resource.h>

#include <algorithm>
#include <functional>
#include <vector>

namespace atl {

using nlohmann::json;

namespace {

/// Seconds for the shared bytes at the links' measured speed: into every node what others read,
/// then from its readers to its other ranks. Null where the links were not measured.
json sending_at_rate(double bytes, const Ranks& ranks) {
  if (!ranks.cluster) return nullptr;
  const comm::Links& links = ranks.cluster->links;
  const int nodes = ranks.topology.num_nodes();
  double seconds = 0;
  if (links.between) seconds += bytes * (nodes - 1) / nodes / links.between->node_bytes_per_s;
  if (!links.inside) return seconds;
  int most_ranks = 1;
  for (int node = 0; node < nodes; ++node) {
    most_ranks = std::max(most_ranks, ranks.topology.ranks_on(node));
  }
  return seconds + bytes * (most_ranks - 1) / links.inside->node_bytes_per_s;
}

}  // namespace

std::int64_t peak_memory_bytes() {
  struct rusage usage {};
  getrusage(RUSAGE_SELF, &usage);
  return std::int64_t{usage.ru_maxrss} * 1024;
}

json gather_startup(const comm::Communicator& world, const Startup& mine,
                    const io::ModelFileReader& file, const Ranks& ranks) {
  const std::vector<Startup> all = world.allgather(mine);
  if (world.rank() != 0) return nullptr;
  const auto most = [&all](const std::function<double(const Startup&)>& value) {
    double largest = 0;
    for (const Startup& rank : all) largest = std::max(largest, value(rank));
    return largest;
  };
  std::int64_t on_file = 0;
  for (const io::DatasetInfo& info : file.datasets()) {
    on_file += info.num_slabs() * info.slab_bytes();
  }
  std::int64_t read = 0;
  std::int64_t packed = 0;
  json peaks = json::array();
  for (const Startup& rank : all) {
    read += rank.load.bytes_read;
    packed += rank.load.bytes_packed;
    peaks.push_back(rank.peak_memory_bytes);
  }
  const double rate = most([](const Startup& s) { return s.load.best_bytes_per_s; });
  const double most_read =
      most([](const Startup& s) { return static_cast<double>(s.load.bytes_read); });
  const std::int64_t shared = all[0].load.bytes_shared;
  return {
      {"open_s", most([](const Startup& s) { return s.open_s; })},
      {"weights_s", most([](const Startup& s) { return s.weights_s; })},
      {"first_admitted_s", all[0].first_admitted_s},
      {"peak_memory_bytes_of_rank", peaks},
      {"tensor_bytes_on_file", on_file},
      {"reading",
       {{"seconds", most([](const Startup& s) { return s.load.read_s; })},
        {"bytes", read},
        {"bytes_per_s", rate > 0 ? json(rate) : json(nullptr)},
        {"at_rate_s", rate > 0 ? json(most_read / rate) : json(nullptr)}}},
      {"sending",
       {{"seconds", most([](const Startup& s) { return s.load.send_s; })},
        {"bytes", shared},
        {"at_rate_s", sending_at_rate(static_cast<double>(shared), ranks)}}},
      {"packing",
       {{"seconds", most([](const Startup& s) { return s.load.pack_s; })}, {"bytes", packed}}},
      {"basis",
       "seconds are measured, of the rank with most; reading runs beside sending and packing, and "
       "sending includes waits for what other ranks read; at_rate_s divides bytes (in reading "
       "those "
       "of the rank with most) by the fastest read of a MiB or more in this run, and by what the "
       "links were measured to carry"},
  };
}

}  // namespace atl
