#include "app/run/place.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <thread>

#include "app/plan/in_parallel.hpp"
#include "app/run/cluster.hpp"
#include "app/run/written_files.hpp"
#include "compute/error.hpp"
#include "io/text_file.hpp"

namespace atl {

namespace {

PlaceFigures figures_of(const ExpertChoices& choices, const RanksOfExpert& ranks,
                        const PlacementRules& rules) {
  PlaceFigures figures;
  if (choices.num_tokens() == 0) return figures;
  const RanksOfExpert contiguous = contiguous_order(choices.num_experts, rules);
  figures.contiguous = loads_of(choices, contiguous, rules.layout, rules.route);
  figures.placed = loads_of(choices, ranks, rules.layout, rules.route);
  const Route other = rules.route == Route::nodes ? Route::flat : Route::nodes;
  figures.other_route = loads_of(choices, ranks, rules.layout, other).link;
  figures.bounds = bounds_of(choices, rules,
                             {std::min(figures.contiguous.link, figures.placed.link),
                              std::min(figures.contiguous.node, figures.placed.node),
                              std::min(figures.contiguous.rank, figures.placed.rank)});
  return figures;
}

/// The largest load of a replica with so many slots on each rank.
double least_rank(const ExpertChoices& choices, int slots, int ranks) {
  const std::vector<std::int64_t> loads = choices.loads();
  const std::vector<int> replicas = replicas_by_load(loads, slots * ranks, ranks);
  double largest = 0;
  for (std::size_t e = 0; e < loads.size(); ++e)
    largest = std::max(largest, static_cast<double>(loads[e]) / replicas[e]);
  const double all =
      static_cast<double>(std::accumulate(loads.begin(), loads.end(), std::int64_t{0}));
  return std::max(largest, all / ranks);
}

/// Slots on each rank that give every rank one more; 0 where no more make sense.
int next_slots(int experts, const PlacementRules& rules) {
  const std::vector<int> seats = seats_of(experts, rules);
  const int slots = *std::max_element(seats.begin(), seats.end()) + 1;
  return slots <= experts ? slots : 0;
}

}  // namespace

std::vector<PlacedLayer> place_layers(const RoutingSample& sample, const PlacementRules& rules,
                                      int threads) {
  std::vector<PlacedLayer> layers(sample.layers.size());
  in_parallel(layers.size(), threads, [&](std::size_t i) {
    PlacementRules of_layer = rules;
    of_layer.seed = rules.seed + i;
    PlacedLayer& layer = layers[i];
    const ExpertChoices& choices = sample.made_from[i];
    layer.ranks_of_expert = place_layer(choices, of_layer);
    layer.made_from = figures_of(choices, layer.ranks_of_expert, rules);
    layer.held_out = figures_of(sample.held_out[i], layer.ranks_of_expert, rules);
    const int slots = next_slots(choices.num_experts, rules);
    if (slots > 0) layer.more_slots = least_rank(choices, slots, rules.layout.num_ranks());
  });
  return layers;
}

std::string place_experts(const PlaceOptions& options) {
  require_separate_files({{"--routing", options.routing},
                          {"--cluster", options.cluster},
                          {"--output", options.output}},
                         2);
  const comm::Topology topology = read_cluster(options.cluster).topology;
  PlaceResult result;
  result.rules.layout = make_layout(topology.node_of);
  result.rules.slots = options.slots;
  result.rules.route = options.route;
  result.rules.seed = options.seed;
  result.sample = read_sample(
      {options.routing, options.top_k, options.experts, options.first_layer, options.holdout});
  const int experts = result.sample.made_from.front().num_experts;
  try {
    seats_of(experts, result.rules);
  } catch (const Error& error) {
    fail("the {} ranks of {} cannot have the experts of {}: {}", topology.num_ranks(),
         options.cluster, options.routing, error.what());
  }
  constexpr std::int64_t work_of_an_expert = 3000000;
  result.rules.work = work_of_an_expert * std::max(experts, 64);
  io::TextFile output(options.output);  // refused before the work
  const int cores = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  result.layers =
      place_layers(result.sample, result.rules, options.threads > 0 ? options.threads : cores);
  result.has_held_out = result.sample.held_out.front().num_tokens() > 0;
  result.next_slots = next_slots(experts, result.rules);
  output.write(place_json(result, options));
  output.close();
  return place_text(result) + fmt::format("placement in {}\n", options.output);
}

}  // namespace atl
