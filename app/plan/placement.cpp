#include "app/plan/placement.hpp"

#include <algorithm>
#include <utility>

#include "compute/error.hpp"

namespace atl {

namespace {

using RanksOfExpert = std::vector<std::vector<int>>;

/// Contiguous shares of one layer's experts, the first ranks having the larger ones.
RanksOfExpert equal_shares(int num_experts, int num_ranks) {
  RanksOfExpert ranks(static_cast<std::size_t>(num_experts));
  for (int rank = 0, expert = 0; rank < num_ranks; ++rank) {
    const int share = num_experts / num_ranks + (rank < num_experts % num_ranks ? 1 : 0);
    for (int i = 0; i < share; ++i) ranks[static_cast<std::size_t>(expert++)] = {rank};
  }
  return ranks;
}

RanksOfExpert in_turn(int num_experts, int num_ranks, int slots) {
  require(std::int64_t{slots} * num_ranks >= num_experts,
          "{} experts do not fit into {} ranks with --slots {} (an expert would have no place); "
          "use --slots {} or more, or more ranks",
          num_experts, num_ranks, slots, (num_experts + num_ranks - 1) / num_ranks);
  require(slots <= num_experts,
          "--slots {} is more than the model's {} experts (one would be twice on a rank)", slots,
          num_experts);
  RanksOfExpert ranks(static_cast<std::size_t>(num_experts));
  for (int rank = 0; rank < num_ranks; ++rank) {
    for (int slot = 0; slot < slots; ++slot) {
      ranks[static_cast<std::size_t>((rank * slots + slot) % num_experts)].push_back(rank);
    }
  }
  return ranks;
}

void require_valid(const RanksOfExpert& ranks_of_expert, int layer, const ModelShape& shape,
                   int num_ranks) {
  require(ranks_of_expert.size() == static_cast<std::size_t>(shape.num_experts),
          "layer {} of the placement has {} experts, the model has {}", layer,
          ranks_of_expert.size(), shape.num_experts);
  for (std::size_t expert = 0; expert < ranks_of_expert.size(); ++expert) {
    std::vector<int> ranks = ranks_of_expert[expert];
    require(!ranks.empty(), "the placement gives expert {} of layer {} no place", expert, layer);
    std::sort(ranks.begin(), ranks.end());
    require(ranks.front() >= 0 && ranks.back() < num_ranks,
            "the placement puts expert {} of layer {} on rank {}, and this job has ranks 0 to {}",
            expert, layer, ranks.front() < 0 ? ranks.front() : ranks.back(), num_ranks - 1);
    const auto twice = std::adjacent_find(ranks.begin(), ranks.end());
    require(twice == ranks.end(), "the placement puts expert {} of layer {} twice on rank {}",
            expert, layer, twice == ranks.end() ? 0 : *twice);
  }
}

}  // namespace

LayerPlacement::LayerPlacement(const RanksOfExpert& ranks_of_expert, const Layout& layout)
    : ranks_of_expert_(ranks_of_expert), experts_of_(static_cast<std::size_t>(layout.num_ranks())) {
  for (std::size_t expert = 0; expert < ranks_of_expert_.size(); ++expert) {
    auto& ranks = ranks_of_expert_[expert];
    std::sort(ranks.begin(), ranks.end());
    for (const int rank : ranks) {
      experts_of_[static_cast<std::size_t>(rank)].push_back(static_cast<std::int32_t>(expert));
    }
  }
  number_places(layout);
}

LayerPlacement::LayerPlacement(std::vector<std::vector<std::int32_t>> experts_of, int num_experts,
                               const Layout& layout)
    : ranks_of_expert_(static_cast<std::size_t>(num_experts)), experts_of_(std::move(experts_of)) {
  for (std::size_t rank = 0; rank < experts_of_.size(); ++rank) {
    for (const std::int32_t expert : experts_of_[rank]) {
      ranks_of_expert_[static_cast<std::size_t>(expert)].push_back(static_cast<int>(rank));
    }
  }
  number_places(layout);
}

void LayerPlacement::number_places(const Layout& layout) {
  first_place_of_.resize(experts_of_.size());
  for (const auto& node : layout.of(Share::node).members) {
    first_place_of_node_.push_back(static_cast<std::int32_t>(replicas_.size()));
    for (const int rank : node) {
      first_place_of_[static_cast<std::size_t>(rank)] = static_cast<std::int32_t>(replicas_.size());
      for (const std::int32_t expert : experts_of(rank)) replicas_.push_back({expert, rank});
    }
  }
  first_place_of_node_.push_back(static_cast<std::int32_t>(replicas_.size()));
}

int LayerPlacement::place_of(int expert, int rank) const {
  const auto& experts = experts_of(rank);
  const auto local = std::find(experts.begin(), experts.end(), expert) - experts.begin();
  return first_place_of(rank) + static_cast<int>(local);
}

compute::ExpertPlaces LayerPlacement::places_seen_by(int rank, const Layout& layout,
                                                     std::span<const std::int32_t> shares) const {
  using compute::Distance;
  compute::ExpertPlaces seen;
  seen.own_node = layout.node_of(rank);
  seen.first_of_node = first_place_of_node_;
  for (std::size_t expert = 0; expert < ranks_of_expert_.size(); ++expert) {
    seen.first_of_expert.push_back(static_cast<std::int32_t>(seen.replicas.size()));
    for (const int holder : ranks_of_expert_[expert]) {
      const int node = layout.node_of(holder);
      seen.replicas.push_back({place_of(static_cast<int>(expert), holder), node,
                               holder == rank          ? Distance::own_rank
                               : node == seen.own_node ? Distance::own_node
                                                       : Distance::elsewhere,
                               shares.empty() ? compute::ReplicaPlace::whole_share
                                              : shares[static_cast<std::size_t>(holder)]});
    }
  }
  seen.first_of_expert.push_back(static_cast<std::int32_t>(seen.replicas.size()));
  return seen;
}

void Placement::separate_layers() {
  std::vector<LayerPlacement> separate;
  for (std::int32_t& kind : kind_of_layer) {
    if (kind < 0) continue;
    separate.push_back(kinds[static_cast<std::size_t>(kind)]);
    kind = static_cast<std::int32_t>(separate.size()) - 1;
  }
  kinds = std::move(separate);
}

void Placement::change(int layer, LayerPlacement to) {
  kinds[static_cast<std::size_t>(kind_of_layer[static_cast<std::size_t>(layer)])] = std::move(to);
}

int Placement::most_experts_on_a_rank() const {
  std::size_t most = 0;
  for (const LayerPlacement& kind : kinds) {
    for (int rank = 0; rank < kind.num_ranks(); ++rank) {
      most = std::max(most, kind.experts_of(rank).size());
    }
  }
  return static_cast<int>(most);
}

int Placement::most_places_on_a_node() const {
  std::int32_t most = 0;
  for (const LayerPlacement& kind : kinds) {
    const auto& first = kind.first_place_of_node();
    for (std::size_t n = 0; n + 1 < first.size(); ++n)
      most = std::max(most, first[n + 1] - first[n]);
  }
  return most;
}

compute::Part Placement::part_of(int rank, const ModelShape& shape, const Layout& layout) const {
  compute::Part part = compute::whole_model(shape);
  part.places.clear();
  for (const LayerPlacement& kind : kinds) part.places.push_back(kind.places_seen_by(rank, layout));
  part.places_of_layer = kind_of_layer;
  for (std::size_t layer = 0; layer < kind_of_layer.size(); ++layer) {
    if (kind_of_layer[layer] >= 0)
      part.experts[layer] = of(static_cast<int>(layer)).experts_of(rank);
  }
  return part;
}

Placement even_placement(const ModelShape& shape, const Layout& layout, int slots) {
  Placement placement;
  const int num_ranks = layout.num_ranks();
  for (int layer = 0; layer < shape.num_layers; ++layer) {
    placement.kind_of_layer.push_back(shape.is_dense(layer) ? -1 : 0);
  }
  if (shape.num_experts == 0) return placement;
  const bool contiguous = slots == 0 && num_ranks <= shape.num_experts;
  placement.kinds.emplace_back(contiguous
                                   ? equal_shares(shape.num_experts, num_ranks)
                                   : in_turn(shape.num_experts, num_ranks, std::max(slots, 1)),
                               layout);
  return placement;
}

Placement explicit_placement(const ModelShape& shape, const Layout& layout,
                             const std::vector<RanksOfExpert>& ranks_of_expert) {
  Placement placement;
  for (int layer = 0; layer < shape.num_layers; ++layer) {
    if (shape.is_dense(layer)) {
      placement.kind_of_layer.push_back(-1);
      continue;
    }
    const LayerPlacement* known = nullptr;
    RanksOfExpert wanted = ranks_of_expert[static_cast<std::size_t>(layer)];
    require_valid(wanted, layer, shape, layout.num_ranks());
    for (auto& ranks : wanted) std::sort(ranks.begin(), ranks.end());
    for (const LayerPlacement& kind : placement.kinds) {
      if (kind.ranks_of_expert() == wanted) known = &kind;
    }
    if (known == nullptr) known = &placement.kinds.emplace_back(wanted, layout);
    placement.kind_of_layer.push_back(static_cast<std::int32_t>(known - placement.kinds.data()));
  }
  return placement;
}

}  // namespace atl
