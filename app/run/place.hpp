#pragma once
// `atoll place`: a placement of experts from recorded routing, with what it gains and what no
// placement could. Without MPI.

#include <string>
#include <vector>

#include "app/config.hpp"
#include "app/plan/layer_placement.hpp"
#include "app/run/routing_sample.hpp"

namespace atl {

/// Of one layer, on one part of the tokens.
struct PlaceFigures {
  LayerLoads contiguous, placed;
  LayerBounds bounds;
  double other_route = 0;  ///< the placed experts' busiest link by the other Route
};

struct PlacedLayer {
  RanksOfExpert ranks_of_expert;
  PlaceFigures made_from, held_out;
  double more_slots = 0;  ///< the least possible busiest rank with one more slot on each
};

/// What text and file are made of.
struct PlaceResult {
  PlacementRules rules;
  RoutingSample sample;
  std::vector<PlacedLayer> layers;
  bool has_held_out = false;
  int next_slots = 0;  ///< of `more_slots`
};

/// [layers], by `threads` threads; the same for any number of them.
std::vector<PlacedLayer> place_layers(const RoutingSample& sample, const PlacementRules& rules,
                                      int threads);

/// For people: sums over layers, and what would help where placement does not.
std::string place_text(const PlaceResult& result);
/// The file that `atoll run --placement` takes, with all figures.
std::string place_json(const PlaceResult& result, const PlaceOptions& options);

/// Writes the file and returns the text. Throws Error where an input cannot be used, or the output
/// not be written.
std::string place_experts(const PlaceOptions& options);

}  // namespace atl
