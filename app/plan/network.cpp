#include "app/plan/network.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "compute/error.hpp"

namespace atl {

Network::Network(const Machine& machine, int num_ranks)
    : machine_(machine), node_of_(machine.nodes_of(num_ranks)) {
  num_nodes_ = node_of_.empty() ? 0 : node_of_.back() + 1;
  add_ports();
  if (num_nodes_ == 1) return;
  switch (machine_.fabric) {
    case Fabric::tree:
      for (const LinkLevel& level : machine_.levels) add_level(level);
      break;
    case Fabric::mesh:
      add_pairs(1, "nodes");
      break;
    case Fabric::dragonfly:
      add_pairs(machine_.nodes_of_group, "groups");
      break;
  }
}

std::int32_t Network::add(double bytes_per_s, std::string name) {
  if (bytes_per_s <= 0) return -1;
  capacity_.push_back(bytes_per_s);
  names_.push_back(std::move(name));
  return static_cast<std::int32_t>(capacity_.size()) - 1;
}

void Network::add_ports() {
  for (int rank = 0; rank < num_ranks(); ++rank) {
    const double slower = machine_.speed_of(rank).link;
    const double inside = machine_.inside.rank_bytes_per_s;
    rank_inside_out_.push_back(add(inside, fmt::format("rank {} out, inside its node", rank)));
    rank_inside_in_.push_back(add(inside, fmt::format("rank {} in, inside its node", rank)));
    const double between = machine_.between.rank_bytes_per_s * slower;
    rank_out_.push_back(add(between, fmt::format("rank {} out, between nodes", rank)));
    rank_in_.push_back(add(between, fmt::format("rank {} in, between nodes", rank)));
  }
  for (int node = 0; node < num_nodes_; ++node) {
    double slower = 1, ports = 0;
    for (int rank = 0; rank < num_ranks(); ++rank) {
      if (node_of(rank) != node) continue;
      const double speed = machine_.speed_of(rank).link;
      slower = std::min(slower, speed);
      ports += machine_.between.rank_bytes_per_s * speed;
    }
    ports_out_.push_back(add(ports, fmt::format("ports of node {} out", node)));
    ports_in_.push_back(add(ports, fmt::format("ports of node {} in", node)));
    node_inside_.push_back(
        add(machine_.inside.node_bytes_per_s, fmt::format("node {} inside", node)));
    const double between = machine_.between.node_bytes_per_s * slower;
    node_out_.push_back(add(between, fmt::format("node {} out", node)));
    node_in_.push_back(add(between, fmt::format("node {} in", node)));
  }
}

/// Switch of a rank on a level; with rails each place of the nodes has its own.
int Network::switch_of(int level, int rank) const {
  const int nodes = levels_[static_cast<std::size_t>(level)].nodes;
  const int group = node_of(rank) / nodes;
  return machine_.rails ? group * machine_.ranks_of_node + place_of(rank) : group;
}

void Network::add_level(const LinkLevel& level) {
  Level& added = levels_.emplace_back();
  added.nodes = level.nodes;
  const int groups = (num_nodes_ + level.nodes - 1) / level.nodes;
  const int rails = machine_.rails ? machine_.ranks_of_node : 1;
  // What all nodes below can send at most.
  double below = machine_.between.node_bytes_per_s;
  const double ports = machine_.between.rank_bytes_per_s * machine_.ranks_of_node;
  if (below <= 0 || (ports > 0 && ports < below)) below = ports;
  const double up = below * level.nodes / rails / level.oversubscription;
  const bool never_full = level.oversubscription <= 1;
  for (int i = 0; i < groups * rails; ++i) {
    const std::string name = rails > 1
                                 ? fmt::format("{} {} of rail {}", level.name, i / rails, i % rails)
                                 : fmt::format("{} {}", level.name, i);
    added.up.push_back(never_full ? -1 : add(up, name + " up"));
    added.down.push_back(never_full ? -1 : add(up, name + " down"));
  }
}

void Network::add_pairs(int nodes_of_part, const char* what) {
  nodes_of_part_ = nodes_of_part;
  num_parts_ = (num_nodes_ + nodes_of_part - 1) / nodes_of_part;
  for (int a = 0; a < num_parts_; ++a) {
    for (int b = 0; b < num_parts_; ++b) {
      pairs_.push_back(a == b ? -1
                              : add(machine_.link_bytes_per_s,
                                    fmt::format("link from {} {} to {}", what, a, b)));
    }
  }
}

LinkPath Network::path(int from, int to) const {
  LinkPath path;
  const auto take = [&path](const std::vector<std::int32_t>& links, int at) {
    const std::int32_t link = links[static_cast<std::size_t>(at)];
    if (link >= 0) path.add(link);
  };
  const int a = node_of(from), b = node_of(to);
  if (a == b) {
    take(rank_inside_out_, from);
    take(node_inside_, a);
    take(rank_inside_in_, to);
    path.latency_s = machine_.inside.latency_s;
    path.most_bytes_per_s = machine_.inside.pair_bytes_per_s;
    return path;
  }
  path.between_nodes = true;
  path.latency_s = machine_.between.latency_s;
  path.most_bytes_per_s = machine_.between.pair_bytes_per_s;
  take(rank_out_, from);
  take(node_out_, a);
  for (int level = 0; level < static_cast<int>(levels_.size()); ++level) {
    const int up = switch_of(level, from), down = switch_of(level, to);
    if (up == down) break;
    take(levels_[static_cast<std::size_t>(level)].up, up);
    take(levels_[static_cast<std::size_t>(level)].down, down);
  }
  if (num_parts_ > 0 && a / nodes_of_part_ != b / nodes_of_part_) {
    take(pairs_, a / nodes_of_part_ * num_parts_ + b / nodes_of_part_);
  }
  take(node_in_, b);
  take(rank_in_, to);
  return path;
}

LinkPath Network::merged_path(int from, int to, bool there) const {
  LinkPath merged = path(from, to);
  const std::int32_t port =
      there ? rank_out_[static_cast<std::size_t>(from)] : rank_in_[static_cast<std::size_t>(to)];
  if (port < 0) return merged;
  const std::int32_t ports = there ? ports_out_[static_cast<std::size_t>(node_of(from))]
                                   : ports_in_[static_cast<std::size_t>(node_of(to))];
  for (int i = 0; i < merged.count; ++i) {
    std::int32_t& link = merged.links[static_cast<std::size_t>(i)];
    if (link == port) link = ports;
  }
  return merged;
}

}  // namespace atl
