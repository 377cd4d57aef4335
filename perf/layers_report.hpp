#pragma once
// Figures that layers_bench reports of what it measured.

#include <algorithm>
#include <array>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <vector>

#include "app/plan/layout.hpp"

namespace atl::perf {

inline double median_of(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

/// Of `times`: compute, communication, overlapped, serial; in seconds, one of each per repetition.
/// Null where nothing is sent.
inline nlohmann::json efficiencies(const std::array<std::vector<double>, 4>& times, int ranks) {
  nlohmann::json each = nlohmann::json::array();
  if (ranks == 1) return {{"of_medians", nullptr}, {"each", each}};
  const auto one = [](double compute, double communication, double overlapped) {
    return (compute + communication - overlapped) / std::min(compute, communication);
  };
  for (std::size_t i = 0; i < times[0].size(); ++i) {
    each.push_back(one(times[0][i], times[1][i], times[2][i]));
  }
  return {{"of_medians", one(median_of(times[0]), median_of(times[1]), median_of(times[2]))},
          {"each", each}};
}

/// The most that a node, or a rank on one node, sends to the others, or gets from them.
/// `bytes` [ranks][ranks].
inline void add_busiest_link(nlohmann::json& result,
                             const std::vector<std::vector<std::int64_t>>& bytes,
                             const Layout& layout) {
  const bool nodes = layout.num_nodes() > 1;
  std::vector<std::int64_t> out(bytes.size());  // by node, or by rank on one node
  std::vector<std::int64_t> in(bytes.size());
  const auto link_of = [&](std::size_t rank) {
    return nodes ? static_cast<std::size_t>(layout.node_of(static_cast<int>(rank))) : rank;
  };
  for (std::size_t from = 0; from < bytes.size(); ++from) {
    for (std::size_t to = 0; to < bytes.size(); ++to) {
      if (link_of(from) == link_of(to)) continue;
      out[link_of(from)] += bytes[from][to];
      in[link_of(to)] += bytes[from][to];
    }
  }
  result["busiest_link_bytes"] =
      std::max(*std::max_element(out.begin(), out.end()), *std::max_element(in.begin(), in.end()));
  result["link_is_of"] = nodes ? "node" : "rank";
}

}  // namespace atl::perf
