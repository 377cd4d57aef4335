#pragma once
// The links of a machine, one by one, and over which of them a message goes.

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "app/plan/machine.hpp"

namespace atl {

/// Links of a path, in a fixed room.
struct LinkPath {
  static constexpr int most = 8;
  std::array<std::int32_t, most> links{};
  int count = 0;
  double latency_s = 0;
  double most_bytes_per_s = 0;  ///< of this message alone; 0: no limit of its own
  bool between_nodes = false;

  void add(std::int32_t link) { links[static_cast<std::size_t>(count++)] = link; }
  std::span<const std::int32_t> all() const {
    return std::span(links).first(static_cast<std::size_t>(count));
  }
};

/// Each direction of a link is one of its own. Links that can never be full, because all that may
/// enter them is less, are left out: that changes no rate.
class Network {
 public:
  /// Of the first `num_ranks` ranks. Throws Error where the machine has fewer.
  Network(const Machine& machine, int num_ranks);

  int num_links() const { return static_cast<int>(capacity_.size()); }
  double capacity(int link) const { return capacity_[static_cast<std::size_t>(link)]; }
  const std::string& name(int link) const { return names_[static_cast<std::size_t>(link)]; }
  /// Between different ranks.
  LinkPath path(int from, int to) const;
  /// Of what all ranks of a node send to one elsewhere, or (not `there`) one to all of a node: the
  /// ports of the many are one link.
  LinkPath merged_path(int from, int to, bool there) const;
  int num_ranks() const { return static_cast<int>(node_of_.size()); }
  int node_of(int rank) const { return node_of_[static_cast<std::size_t>(rank)]; }

 private:
  std::int32_t add(double bytes_per_s, std::string name);
  void add_ports();
  void add_level(const LinkLevel& level);
  void add_pairs(int parts, const char* what);
  int place_of(int rank) const { return rank % machine_.ranks_of_node; }
  int switch_of(int level, int rank) const;

  Machine machine_;
  std::vector<int> node_of_;
  int num_nodes_ = 0;
  std::vector<double> capacity_;
  std::vector<std::string> names_;
  // Indices of links; -1: left out.
  std::vector<std::int32_t> rank_inside_out_, rank_inside_in_, node_inside_;
  std::vector<std::int32_t> rank_out_, rank_in_, node_out_, node_in_;
  std::vector<std::int32_t> ports_out_, ports_in_;  // of a node's ranks together
  struct Level {
    int nodes = 0;
    std::vector<std::int32_t> up, down;  // [switches], of each rail where there are rails
  };
  std::vector<Level> levels_;
  std::vector<std::int32_t> pairs_;  // [parts, parts] of nodes or groups
  int num_parts_ = 0, nodes_of_part_ = 1;
};

}  // namespace atl
