// What `atoll place` says and writes.

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <nlohmann/json.hpp>
#include <numeric>

#include "app/config_choice.hpp"
#include "app/run/place.hpp"
#include "app/run/placement_file.hpp"
#include "io/json_shown.hpp"

namespace atl {

using nlohmann::ordered_json;

namespace {

using Part = PlaceFigures PlacedLayer::*;

/// One kind of load, and where it stands.
struct Kind {
  const char* name;
  const char* key;
  double LayerLoads::*load;
};
constexpr Kind kinds[] = {{"busiest link", "busiest_link", &LayerLoads::link},
                          {"busiest node", "busiest_node", &LayerLoads::node},
                          {"busiest rank", "busiest_rank", &LayerLoads::rank}};

Bound bound_of(const LayerBounds& bounds, const Kind& kind) {
  if (kind.load == &LayerLoads::link) return bounds.link;
  if (kind.load == &LayerLoads::node) return bounds.node;
  return {bounds.rank, Limit::none};
}

const char* name_of(Limit limit) {
  switch (limit) {
    case Limit::average:
      return "average";
    case Limit::hottest_expert:
      return "hottest expert";
    case Limit::exact:
      return "exact";
    case Limit::none:
      break;
  }
  return "none";
}

double quotient(double a, double b) {
  return b > 0 ? a / b : 1;
}

struct Sums {
  double contiguous = 0, placed = 0, bound = 0;
  double worst_gap = 1;  // of a layer
  double gain() const { return quotient(contiguous, placed); }
  double gap() const { return quotient(placed, bound); }
};

Sums sums_of(const std::vector<PlacedLayer>& layers, Part part, const Kind& kind) {
  Sums sums;
  for (const PlacedLayer& layer : layers) {
    const PlaceFigures& figures = layer.*part;
    const double bound = bound_of(figures.bounds, kind).busiest;
    sums.contiguous += figures.contiguous.*kind.load;
    sums.placed += figures.placed.*kind.load;
    sums.bound += bound;
    sums.worst_gap = std::max(sums.worst_gap, quotient(figures.placed.*kind.load, bound));
  }
  return sums;
}

std::string table(const PlaceResult& result) {
  std::string text = fmt::format("{:<10} {:<13} {:>12} {:>12} {:>12} {:>7} {:>7} {:>10}\n", "", "",
                                 "contiguous", "placed", "bound", "gain", "gap", "worst gap");
  const auto rows = [&](const char* name, Part part) {
    for (const Kind& kind : kinds) {
      const Sums sums = sums_of(result.layers, part, kind);
      fmt::format_to(std::back_inserter(text),
                     "{:<10} {:<13} {:>12.0f} {:>12.0f} {:>12.0f} {:>7.3f} {:>7.3f} {:>10.3f}\n",
                     name, kind.name, sums.contiguous, sums.placed, sums.bound, sums.gain(),
                     sums.gap(), sums.worst_gap);
      name = "";
    }
  };
  rows("made from", &PlacedLayer::made_from);
  if (result.has_held_out) rows("held out", &PlacedLayer::held_out);
  return text +
         "rows of all tokens, summed over layers; link: over a node's link for its experts, there "
         "and back;\nnode: that come to a node, from its own ranks too; bound: no placement goes "
         "below; gain: contiguous / placed;\ngap: placed / bound, in sum and in the worst layer\n";
}

/// Where the links stand, and what would help there.
std::string link_advice(const PlaceResult& result) {
  if (result.rules.layout.num_nodes() == 1) {
    return "There is one node: no link is crossed, and only ranks' loads can be evened out.\n";
  }
  const Sums link = sums_of(result.layers, &PlacedLayer::made_from, kinds[0]);
  std::string text;
  if (link.gain() < 1.05) {
    text += fmt::format(
        "Placement cannot help the links much here: it takes {:.1f} % off the busiest, and none "
        "takes more than {:.1f} % off.\n",
        100 * (1 - 1 / link.gain()), 100 * (1 - quotient(link.bound, link.contiguous)));
  } else if (link.gap() < 1.05) {
    text += "The links are within 5 % of what any placement could reach.\n";
  }
  const auto hot =
      std::count_if(result.layers.begin(), result.layers.end(), [](const PlacedLayer& layer) {
        return layer.made_from.bounds.link.limit == Limit::hottest_expert;
      });
  if (hot > 0) {
    text += fmt::format(
        "In {} of {} layers the node of the hottest expert is what limits the links: replicas of "
        "that expert (--slots) help there, other places do not.\n",
        hot, result.layers.size());
  }
  double other = 0;
  for (const PlacedLayer& layer : result.layers) other += layer.made_from.other_route;
  if (result.rules.route == Route::flat && other < 0.95 * link.placed) {
    text += fmt::format("Two hops (--route nodes) would take {:.1f} % off the busiest link.\n",
                        100 * (1 - quotient(other, link.placed)));
  }
  return text;
}

/// Where the ranks stand, and what would help there.
std::string rank_advice(const PlaceResult& result) {
  const Sums rank = sums_of(result.layers, &PlacedLayer::made_from, kinds[2]);
  double mean = 0;
  double more = 0;
  for (std::size_t i = 0; i < result.layers.size(); ++i) {
    mean += static_cast<double>(result.sample.made_from[i].experts.size()) /
            result.rules.layout.num_ranks();
    more += result.layers[i].more_slots;
  }
  const double over_mean = quotient(rank.placed, mean);
  if (over_mean < 1.1) return "";
  std::string text = fmt::format("The busiest rank computes {:.2f} x the mean", over_mean);
  text += rank.gap() < 1.05 ? ", which no placement in these slots changes much" : "";
  if (result.next_slots > 0 && more < 0.95 * rank.placed) {
    text += fmt::format("; with replicas by --slots {} it could be {:.2f} x at best",
                        result.next_slots, quotient(more, mean));
  }
  return text +
         ".\nWhat then is left only other choices of experts (a bias of the gates) take away, "
         "which change results.\n";
}

std::string carry_over(const PlaceResult& result) {
  if (!result.has_held_out) return "";
  const double made = sums_of(result.layers, &PlacedLayer::made_from, kinds[0]).gain();
  const double held = sums_of(result.layers, &PlacedLayer::held_out, kinds[0]).gain();
  if (made < 1.05 || held - 1 >= (made - 1) / 2) return "";
  return "Less than half of the links' gain is left on text that the placement was not made from: "
         "record more text, or text that is more like what will come.\n";
}

ordered_json sums_json(const std::vector<PlacedLayer>& layers, Part part) {
  ordered_json all;
  for (const Kind& kind : kinds) {
    const Sums sums = sums_of(layers, part, kind);
    all[kind.key] = {
        {"contiguous", sums.contiguous}, {"placed", sums.placed}, {"bound", sums.bound},
        {"gain", sums.gain()},           {"gap", sums.gap()},     {"worst_gap", sums.worst_gap}};
  }
  return all;
}

ordered_json layer_json(const PlaceFigures& figures) {
  ordered_json all;
  for (const Kind& kind : kinds) {
    const Bound bound = bound_of(figures.bounds, kind);
    all[kind.key] = {{"contiguous", figures.contiguous.*kind.load},
                     {"placed", figures.placed.*kind.load},
                     {"bound", bound.busiest}};
    if (kind.load != &LayerLoads::rank) all[kind.key]["limit"] = name_of(bound.limit);
  }
  return all;
}

}  // namespace

std::string place_text(const PlaceResult& result) {
  const ExpertChoices& first = result.sample.made_from.front();
  const Layout& layout = result.rules.layout;
  std::string text = fmt::format(
      "{} layers, {} of {} experts a token, on {} nodes with {} ranks, route {}\n"
      "made from {} tokens, held out {}\n\n",
      result.layers.size(), first.top_k, first.num_experts, layout.num_nodes(), layout.num_ranks(),
      text_of_choice(result.rules.route), first.num_tokens(),
      result.sample.held_out.front().num_tokens());
  return text + table(result) + "\n" + link_advice(result) + rank_advice(result) +
         carry_over(result);
}

std::string place_json(const PlaceResult& result, const PlaceOptions& options) {
  const ExpertChoices& first = result.sample.made_from.front();
  ordered_json layers, figures_of_layers;
  for (std::size_t i = 0; i < result.layers.size(); ++i) {
    const std::string number = std::to_string(result.sample.layers[i]);
    layers[number] = result.layers[i].ranks_of_expert;
    ordered_json& of_layer = figures_of_layers[number];
    of_layer["made_from"] = layer_json(result.layers[i].made_from);
    if (result.has_held_out) of_layer["held_out"] = layer_json(result.layers[i].held_out);
  }
  ordered_json sums = {{"made_from", sums_json(result.layers, &PlacedLayer::made_from)}};
  if (result.has_held_out) sums["held_out"] = sums_json(result.layers, &PlacedLayer::held_out);
  const ordered_json figures = {{"routing", options.routing},
                                {"cluster", options.cluster},
                                {"experts", first.num_experts},
                                {"top_k", first.top_k},
                                {"slots", options.slots},
                                {"route", text_of_choice(result.rules.route)},
                                {"seed", options.seed},
                                {"tokens",
                                 {{"made_from", first.num_tokens()},
                                  {"held_out", result.sample.held_out.front().num_tokens()}}},
                                {"sums", sums},
                                {"layers", figures_of_layers}};
  const ordered_json file = {
      {"format", placement_format}, {"layers", layers}, {"figures", figures}};
  return io::json_text(file) + "\n";
}

}  // namespace atl
