#include "app/run/check_text.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

namespace atl {

using nlohmann::ordered_json;

namespace {

constexpr std::size_t most_nodes_shown = 12;
constexpr std::size_t most_ranks_shown = 16;

std::string limit_text(double bytes) {
  return bytes < 0 ? "unlimited" : fmt::format("{:.0f} kB", bytes / 1e3);
}

std::string list_text(const std::vector<int>& numbers) {
  if (numbers.empty()) return "-";
  const bool dense = numbers.back() - numbers.front() + 1 == static_cast<int>(numbers.size());
  if (numbers.size() > 2 && dense) return fmt::format("{}-{}", numbers.front(), numbers.back());
  return fmt::format("{}", fmt::join(numbers, ","));
}

std::string heading(const MachineFacts& machine) {
  const RankFacts& first = machine.ranks.front();
  return fmt::format(
      "{} rank{} on {} node{}; {}, HDF5 {}, oneDNN {}, build {}, Linux {}\n"
      "limits on {}: locked memory {}, open files {}\n",
      machine.ranks.size(), machine.ranks.size() == 1 ? "" : "s", machine.nodes.size(),
      machine.nodes.size() == 1 ? "" : "s", first.mpi, first.hdf5, first.one_dnn, first.build,
      first.kernel, first.host, limit_text(first.memlock),
      first.open_files < 0 ? "unlimited" : fmt::format("{:.0f}", first.open_files));
}

/// "-" where it was not measured.
std::string giga_text(double rate) {
  return rate > 0 ? fmt::format("{:.1f}", rate / 1e9) : "-";
}

std::string table_of_ranks(const MachineFacts& machine) {
  std::string text =
      fmt::format("{:>5} {:<16} {:<12} {:<5} {:>8} {:>7} {:>7} {:>9} {:>8}  {}\n", "rank", "node",
                  "cores", "NUMA", "GFLOP/s", "GB/s", "GB", "shm MB", "file MB/s", "GPU; card");
  for (std::size_t r = 0; r < std::min(machine.ranks.size(), most_ranks_shown); ++r) {
    const RankFacts& facts = machine.ranks[r];
    text +=
        fmt::format("{:>5} {:<16} {:<12} {:<5} {:>8} {:>7} {:>7.1f} {:>9.0f} {:>8.0f}  {}; {}\n", r,
                    machine.nodes[static_cast<std::size_t>(facts.node)], list_text(facts.cores),
                    list_text(facts.numa), giga_text(facts.flops_per_s),
                    giga_text(facts.read_bytes_per_s), facts.memory_given / 1e9,
                    facts.shm_free / 1e6, facts.folder_bytes_per_s / 1e6, facts.gpu, facts.card);
  }
  if (machine.ranks.size() > most_ranks_shown) {
    text += fmt::format("      and {} more ranks (--report has all)\n",
                        machine.ranks.size() - most_ranks_shown);
  }
  return text;
}

std::string links_text(const MachineFacts& machine) {
  if (machine.pairs.empty()) return "";
  std::vector<double> rates;
  double slowest_trip = 0;
  for (const comm::PairRate& pair : machine.pairs) {
    rates.push_back(pair.bytes_per_s);
    slowest_trip = std::max(slowest_trip, pair.round_trip_s);
  }
  std::sort(rates.begin(), rates.end());
  if (rates.back() <= 0) return "";  // not measured
  return fmt::format(
      "{} pairs of nodes: {:.4g} to {:.4g} MB/s each way, median {:.4g}; round trips up to {:.0f} "
      "us\n",
      rates.size(), rates.front() / 1e6, rates.back() / 1e6, rates[rates.size() / 2] / 1e6,
      slowest_trip * 1e6);
}

}  // namespace

std::string check_text(const MachineFacts& machine, const Verdict& verdict) {
  std::string text = heading(machine) + table_of_ranks(machine) + links_text(machine);
  for (const CheckedTransport& transport : machine.transports) {
    if (!transport.passed) {
      text += fmt::format("transport {}: does not work\n", transport.name);
    } else if (transport.bytes_per_s > 0) {  // of one rank there is no rate
      text += fmt::format("transport {}: {:.4g} MB/s from each rank while all send\n",
                          transport.name, transport.bytes_per_s / 1e6);
    }
  }
  for (const std::string& note : verdict.notes) text += "note: " + note + "\n";
  const std::size_t shown = std::min(verdict.problems.size(), 2 * most_nodes_shown);
  for (std::size_t i = 0; i < shown; ++i) text += "problem: " + verdict.problems[i] + "\n";
  if (shown < verdict.problems.size()) {
    text += fmt::format("and {} more problems\n", verdict.problems.size() - shown);
  }
  return text + (verdict.problems.empty() ? "no problem found\n" : "");
}

ordered_json check_json(const MachineFacts& machine, const Verdict& verdict) {
  ordered_json pairs = ordered_json::array();
  for (const comm::PairRate& pair : machine.pairs) {
    pairs.push_back({{"nodes",
                      {machine.nodes[static_cast<std::size_t>(pair.a)],
                       machine.nodes[static_cast<std::size_t>(pair.b)]}},
                     {"bytes_per_s", pair.bytes_per_s},
                     {"round_trip_s", pair.round_trip_s}});
  }
  ordered_json transports = ordered_json::array();
  for (const CheckedTransport& transport : machine.transports) {
    transports.push_back({{"name", transport.name},
                          {"passed", transport.passed},
                          {"bytes_per_s", transport.bytes_per_s}});
  }
  ordered_json ranks = ordered_json::array();
  for (const RankFacts& facts : machine.ranks) {
    ranks.push_back(ordered_json(nlohmann::json(facts)));
  }
  return {{"format", "atoll-check"},
          {"format_version", 1},
          {"sound", verdict.problems.empty()},
          {"problems", verdict.problems},
          {"notes", verdict.notes},
          {"nodes", machine.nodes},
          {"ranks", ranks},
          {"pairs", pairs},
          {"transports", transports},
          {"folder",
           {{"path", machine.folder},
            {"write_bytes_per_s", machine.folder_write_bytes_per_s},
            {"locks", machine.folder_locks}}}};
}

}  // namespace atl
