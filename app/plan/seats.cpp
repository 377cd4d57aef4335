#include "app/plan/seats.hpp"

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <utility>

#include "app/plan/placement.hpp"
#include "compute/error.hpp"

namespace atl {

RanksOfExpert contiguous_order(int num_experts, const PlacementRules& rules) {
  ModelShape shape;
  shape.num_layers = 1;
  shape.num_experts = num_experts;
  shape.layer_is_dense = {false};
  return even_placement(shape, rules.layout, rules.slots).of(0).ranks_of_expert();
}

std::vector<int> seats_of(int num_experts, const PlacementRules& rules) {
  const RanksOfExpert ranks = contiguous_order(num_experts, rules);
  const int num_ranks = rules.layout.num_ranks();
  std::vector<int> seats(static_cast<std::size_t>(num_ranks));
  if (rules.slots == 0 && num_ranks <= num_experts) {
    // Whichever ranks have one more: none has more than the largest of equal shares.
    std::fill(seats.begin(), seats.end(), (num_experts + num_ranks - 1) / num_ranks);
    return seats;
  }
  for (const auto& holders : ranks) {
    for (const int rank : holders) ++seats[static_cast<std::size_t>(rank)];
  }
  return seats;
}

// Greedy is optimal: a number of replicas that makes all loads at most z is, of each expert, at
// least load / z rounded up; as long as the largest load is above z the greedy choice adds one
// where it is missing, so that it has at most those when it gets there.
std::vector<int> replicas_by_load(const std::vector<std::int64_t>& loads, int seats, int most) {
  std::vector<int> replicas(loads.size(), 1);
  for (int i = static_cast<int>(loads.size()); i < seats; ++i) {
    std::size_t best = loads.size();
    for (std::size_t e = 0; e < loads.size(); ++e) {
      if (replicas[e] >= most) continue;
      if (best == loads.size() || loads[e] * replicas[best] > loads[best] * replicas[e]) best = e;
    }
    ++replicas[best];
  }
  return replicas;
}

Items items_of(const std::vector<int>& replicas, const std::vector<std::int64_t>& loads,
               int seats) {
  Items items;
  for (std::size_t e = 0; e < replicas.size(); ++e) {
    for (int i = 0; i < replicas[e]; ++i) {
      items.expert.push_back(static_cast<int>(e));
      items.loads.push_back((loads[e] + replicas[e] - 1 - i) / replicas[e]);
    }
  }
  items.expert.resize(static_cast<std::size_t>(seats), -1);
  items.loads.resize(items.expert.size());
  return items;
}

namespace {

/// Each expert's items to the ranks with the most room: fits where anything does (Gale and Ryser).
/// A place is as many ranks as it may have items of one expert, with as many seats each.
std::vector<int> dealt(const std::vector<int>& expert, const std::vector<int>& room,
                       const std::vector<int>& alike) {
  struct Rank {
    int room;
    int place;
    bool taken;  // by this expert
  };
  std::vector<Rank> ranks;
  for (std::size_t p = 0; p < room.size(); ++p) {
    for (int i = 0; i < alike[p]; ++i)
      ranks.push_back({(room[p] + alike[p] - 1 - i) / alike[p], static_cast<int>(p), false});
  }
  std::vector<int> place_of(expert.size());
  for (std::size_t item = 0; item < expert.size(); ++item) {
    if (item == 0 || expert[item] < 0 || expert[item] != expert[item - 1]) {
      for (Rank& rank : ranks) rank.taken = false;
    }
    const auto best =
        std::max_element(ranks.begin(), ranks.end(), [](const Rank& x, const Rank& y) {
          return std::pair(!x.taken, x.room) < std::pair(!y.taken, y.room);
        });
    require(!best->taken && best->room > 0, "replicas find no seats");
    place_of[item] = best->place;
    --best->room;
    best->taken = true;
  }
  return place_of;
}

}  // namespace

std::vector<int> spread(const Items& items, const std::vector<int>& room,
                        const std::vector<int>& alike) {
  const std::size_t places = room.size();
  std::vector<std::size_t> order(items.expert.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return items.loads[a] > items.loads[b]; });
  std::vector<int> place_of(order.size(), -1);
  std::vector<int> left = room;
  std::vector<std::int64_t> filled(places);
  for (const std::size_t item : order) {
    std::vector<int> same(places);
    for (std::size_t i = 0; i < order.size(); ++i) {
      if (place_of[i] >= 0 && items.expert[i] >= 0 && items.expert[i] == items.expert[item])
        ++same[static_cast<std::size_t>(place_of[i])];
    }
    std::size_t best = places;
    for (std::size_t p = 0; p < places; ++p) {
      if (left[p] == 0 || same[p] >= alike[p]) continue;
      if (best == places || std::pair(same[p], filled[p]) < std::pair(same[best], filled[best]))
        best = p;
    }
    if (best == places)
      return dealt(items.expert, room, alike);  // only seats beside its own are left
    place_of[item] = static_cast<int>(best);
    filled[best] += items.loads[item];
    --left[best];
  }
  return place_of;
}

RanksOfExpert over_ranks(const Items& items, const std::vector<int>& node_of, int num_experts,
                         const std::vector<int>& seats, const Layout& layout) {
  RanksOfExpert ranks(static_cast<std::size_t>(num_experts));
  for (int node = 0; node < layout.num_nodes(); ++node) {
    const auto& members = layout.of(Share::node).members[static_cast<std::size_t>(node)];
    Items here;
    for (std::size_t i = 0; i < node_of.size(); ++i) {
      if (node_of[i] != node) continue;
      here.expert.push_back(items.expert[i]);
      here.loads.push_back(items.loads[i]);
    }
    std::vector<int> room;
    for (const int rank : members) room.push_back(seats[static_cast<std::size_t>(rank)]);
    const std::vector<int> place_of = spread(here, room, std::vector<int>(room.size(), 1));
    for (std::size_t i = 0; i < place_of.size(); ++i) {
      if (here.expert[i] >= 0) {
        ranks[static_cast<std::size_t>(here.expert[i])].push_back(
            members[static_cast<std::size_t>(place_of[i])]);
      }
    }
  }
  for (auto& holders : ranks) std::sort(holders.begin(), holders.end());
  return ranks;
}

RanksOfExpert place_by_loads(const std::vector<std::int64_t>& loads, const PlacementRules& rules) {
  const auto num_experts = static_cast<int>(loads.size());
  const std::vector<int> seats = seats_of(num_experts, rules);
  const int all = std::accumulate(seats.begin(), seats.end(), 0);
  const bool replicas = rules.slots > 0 || rules.layout.num_ranks() > num_experts;
  const Items items = items_of(
      replicas_by_load(loads, replicas ? all : num_experts, rules.layout.num_ranks()), loads, all);
  std::vector<int> room, alike;
  for (const auto& members : rules.layout.of(Share::node).members) {
    alike.push_back(static_cast<int>(members.size()));
    room.push_back(0);
    for (const int rank : members) room.back() += seats[static_cast<std::size_t>(rank)];
  }
  return over_ranks(items, spread(items, room, alike), num_experts, seats, rules.layout);
}

}  // namespace atl
