#include "app/config_place.hpp"

#include "app/config_choice.hpp"

namespace atl {

CLI::App& add_place(CLI::App& app, PlaceOptions& o) {
  CLI::App& place = *app.add_subcommand(
      "place", "Make a placement of experts from recorded routing, and say what it gains");
  place
      .add_option("--routing", o.routing,
                  "What tokens chose: a file of run --record-routing, or a .npy of shape [tokens, "
                  "layers, k]")
      ->required();
  place
      .add_option("--cluster", o.cluster,
                  "Nodes and their ranks: a file of run --cluster, or one by hand (JSON)")
      ->required();
  place.add_option("--output", o.output, "Placement file to write, for run --placement")
      ->required();
  place.add_option("--top-k", o.top_k, "Experts of a token that count, the first ones; 0: all")
      ->check(CLI::Range(0, 255))
      ->capture_default_str();
  place
      .add_option("--slots", o.slots,
                  "Experts of a layer on each rank, with replicas where that makes more places "
                  "than experts; 0: equal shares, one where there are more ranks than experts")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
  place
      .add_option("--holdout", o.holdout,
                  "Share of the tokens, the last ones, that the placement is not made from but "
                  "tried on")
      ->check(CLI::Range(0.0, 0.99))
      ->capture_default_str();
  add_choice(place, "--route", o.route, {Route::nodes, Route::flat},
             "How tokens reach experts on other nodes: once to each node, or once for each expert");
  place
      .add_option("--experts", o.experts,
                  "Experts of a layer, where a .npy does not name them all; 0: the largest and one")
      ->check(CLI::Range(0, 65536))
      ->capture_default_str();
  place
      .add_option("--first-layer", o.first_layer,
                  "The model's number of the first layer of a .npy: its MoE layers must follow one "
                  "another")
      ->check(CLI::Range(0, 100000))
      ->capture_default_str();
  place.add_option("--seed", o.seed, "Seed of the search")->capture_default_str();
  place.add_option("--threads", o.threads, "Layers at once; 0: as many as cores")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
  return place;
}

}  // namespace atl
