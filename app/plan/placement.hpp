#pragma once
// Which rank holds which expert of which layer; experts may have several replicas.

#include <cstdint>
#include <span>
#include <vector>

#include "app/plan/layout.hpp"
#include "compute/weights.hpp"

namespace atl {

/// One expert on one rank.
struct Replica {
  std::int32_t expert = 0;
  std::int32_t rank = 0;
};

/// One layer's. A replica's index is its place among sent rows: by node, there by rank, there by
/// expert. Counts, packed rows, received blocks and messages all have this one order.
class LayerPlacement {
 public:
  /// `ranks_of_expert` [experts]: the ranks that hold each; at least one, none of them twice.
  LayerPlacement(const std::vector<std::vector<int>>& ranks_of_expert, const Layout& layout);
  /// `experts_of` [ranks]: each rank's experts in their local order; every expert at least once.
  LayerPlacement(std::vector<std::vector<std::int32_t>> experts_of, int num_experts,
                 const Layout& layout);

  const std::vector<Replica>& replicas() const { return replicas_; }
  /// [experts]: as given, in rising order of rank.
  const std::vector<std::vector<int>>& ranks_of_expert() const { return ranks_of_expert_; }
  /// Experts of a rank by their local number: rising, until some have been put in others' place.
  const std::vector<std::int32_t>& experts_of(int rank) const {
    return experts_of_[static_cast<std::size_t>(rank)];
  }
  const std::vector<std::vector<std::int32_t>>& experts_of_ranks() const { return experts_of_; }
  int num_experts() const { return static_cast<int>(ranks_of_expert_.size()); }
  int num_ranks() const { return static_cast<int>(experts_of_.size()); }
  /// Place of the replica of `expert` on a rank that has one.
  int place_of(int expert, int rank) const;
  /// Place of a rank's first expert; the others follow.
  int first_place_of(int rank) const { return first_place_of_[static_cast<std::size_t>(rank)]; }
  /// Place of the first replica on a node; [nodes + 1].
  const std::vector<std::int32_t>& first_place_of_node() const { return first_place_of_node_; }

  /// The replicas as `rank` sees them. `shares` [ranks]: of those on each, see
  /// compute::ReplicaPlace; none: whole ones.
  compute::ExpertPlaces places_seen_by(int rank, const Layout& layout,
                                       std::span<const std::int32_t> shares = {}) const;

 private:
  void number_places(const Layout& layout);

  std::vector<Replica> replicas_;
  std::vector<std::vector<int>> ranks_of_expert_;
  std::vector<std::vector<std::int32_t>> experts_of_;  // [ranks]
  std::vector<std::int32_t> first_place_of_;           // [ranks]
  std::vector<std::int32_t> first_place_of_node_;      // [nodes + 1]
};

/// Of all layers; layers with the same one share it.
struct Placement {
  std::vector<LayerPlacement> kinds;
  std::vector<std::int32_t> kind_of_layer;  ///< [layers]; -1: dense

  const LayerPlacement& of(int layer) const {
    return kinds[static_cast<std::size_t>(kind_of_layer[static_cast<std::size_t>(layer)])];
  }
  /// Every layer gets a kind of its own, so that one can change alone.
  void separate_layers();
  /// Of a layer that shares its kind with none.
  void change(int layer, LayerPlacement to);
  int most_experts_on_a_rank() const;
  int most_places_on_a_node() const;
  /// Whether some rank holds several experts of one layer.
  bool several_per_rank() const { return most_experts_on_a_rank() > 1; }
  /// What `rank` has of a model of this shape.
  compute::Part part_of(int rank, const ModelShape& shape, const Layout& layout) const;
};

/// The same for every layer, as `--slots` says: so many experts of a layer on each rank. Experts
/// take the places in turn, again from the first where there are more places than experts, so that
/// they have equal numbers of replicas, or one more. 0: as many as are needed for one place each,
/// in contiguous shares that differ by one at most; where there are more ranks than experts, one
/// place a rank. Throws Error where an expert would have no place, or be twice on a rank.
Placement even_placement(const ModelShape& shape, const Layout& layout, int slots = 0);

/// As a file says, or a test draws: [layers][experts] -> ranks; nothing for a dense layer. Throws
/// Error, which names layer and expert, where one has no place, a place out of range or twice.
Placement explicit_placement(const ModelShape& shape, const Layout& layout,
                             const std::vector<std::vector<std::vector<int>>>& ranks_of_expert);

}  // namespace atl
