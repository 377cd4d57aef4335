#include "app/plan/machine.hpp"

#include "compute/error.hpp"

namespace atl {

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

}  // namespace atl
