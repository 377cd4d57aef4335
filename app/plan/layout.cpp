#include "app/plan/layout.hpp"

#include <algorithm>

namespace atl {

Grouping grouped(std::vector<std::int32_t> group_of) {
  Grouping grouping;
  grouping.group_of = std::move(group_of);
  for (std::size_t rank = 0; rank < grouping.group_of.size(); ++rank) {
    const auto group = static_cast<std::size_t>(grouping.group_of[rank]);
    if (grouping.members.size() <= group) grouping.members.resize(group + 1);
    grouping.place_of.push_back(static_cast<std::int32_t>(grouping.members[group].size()));
    grouping.members[group].push_back(static_cast<int>(rank));
  }
  return grouping;
}

int Layout::receiver(int sender, int node) const {
  const auto& there = of(Share::node).members[static_cast<std::size_t>(node)];
  const auto place =
      static_cast<std::size_t>(of(Share::node).place_of[static_cast<std::size_t>(sender)]);
  return there[place % there.size()];
}

Layout make_layout(const std::vector<int>& node_of) {
  Layout layout;
  const std::vector<std::int32_t> all(node_of.size(), 0);
  Grouping nodes = grouped({node_of.begin(), node_of.end()});
  const bool even = std::all_of(
      nodes.members.begin(), nodes.members.end(),
      [&](const auto& members) { return members.size() == nodes.members.front().size(); });
  layout.groups = {grouped(all), nodes, grouped(even ? nodes.place_of : all)};
  return layout;
}

Layout one_node(int num_ranks) {
  return make_layout(std::vector<int>(static_cast<std::size_t>(num_ranks), 0));
}

}  // namespace atl
