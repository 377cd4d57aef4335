#include "app/plan/machine.hpp"

#include <algorithm>
#include <cmath>
#include <span>

#include "compute/error.hpp"

namespace atl {

namespace {

/// Of points that rise, between the two beside `x`; outside, the nearest.
double between_points(std::span<const double> xs, std::span<const double> ys, double x) {
  if (x <= xs.front()) return ys.front();
  if (x >= xs.back()) return ys.back();
  const auto above =
      static_cast<std::size_t>(std::upper_bound(xs.begin(), xs.end(), x) - xs.begin());
  const double part = (x - xs[above - 1]) / (xs[above] - xs[above - 1]);
  return ys[above - 1] + part * (ys[above] - ys[above - 1]);
}

}  // namespace

std::string_view name_of(Basis basis) {
  switch (basis) {
    case Basis::measured:
      return "measured";
    case Basis::stated:
      return "stated";
    case Basis::extrapolated:
      return "extrapolated";
  }
  return "?";
}

std::string_view name_of(Fabric fabric) {
  switch (fabric) {
    case Fabric::tree:
      return "tree";
    case Fabric::mesh:
      return "mesh";
    case Fabric::dragonfly:
      return "dragonfly";
  }
  return "?";
}

std::vector<int> Machine::nodes_of(int ranks) const {
  require(ranks <= num_ranks(), "--ranks {}: {} has {} nodes of {} ranks; give {} or fewer", ranks,
          name, num_nodes, ranks_of_node, num_ranks());
  std::vector<int> nodes;
  for (int rank = 0; rank < ranks; ++rank) nodes.push_back(rank / ranks_of_node);
  return nodes;
}

RankSpeed Machine::speed_of(int rank) const {
  for (const RankSpeed& speed : speeds) {
    if (rank >= speed.first && rank < speed.end) return speed;
  }
  return {rank, rank + 1, 1, 1};
}

double Machine::attention_over_bound(double tokens, double context) const {
  if (attention.empty()) return 1;
  std::vector<double> sizes, factors;
  for (const AttentionLadder& ladder : attention) {
    std::vector<double> contexts;
    for (const double before : ladder.contexts) contexts.push_back(std::log1p(before));
    sizes.push_back(std::log(ladder.tokens));
    factors.push_back(between_points(contexts, ladder.over_bound, std::log1p(context)));
  }
  return between_points(sizes, factors, std::log(tokens));
}

double Machine::experts_over_products(double busiest_over_mean) const {
  if (experts.over_products.empty()) return 1;
  return between_points(experts.busiest_over_mean, experts.over_products, busiest_over_mean);
}

}  // namespace atl
