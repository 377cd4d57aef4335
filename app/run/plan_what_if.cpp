#include "app/run/plan_what_if.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <tuple>
#include <utility>

#include "compute/error.hpp"

namespace atl {

namespace {

PlanDetail coarse_detail(int ranks) {
  PlanDetail detail = detail_for(ranks);
  detail.coarse.first_network = true;
  detail.fine = detail.coarse;
  detail.samples = {1, 2};
  detail.some_layers = true;
  return detail;
}

void scale_links(Machine& machine, double factor) {
  LinkRates& between = machine.between;
  between.rank_bytes_per_s *= factor;
  between.node_bytes_per_s *= factor;
  between.pair_bytes_per_s *= factor;
  machine.link_bytes_per_s *= factor;
}

RoutingSource with_skew(const PlanInput& input, double sigma) {
  const ModelShape& shape = input.config.shape;
  return {RoutingLaw{sigma, 1}, shape.num_layers, shape.num_experts, shape.top_k};
}

/// So many times the requests: the same ones again, or the first of them.
void scale_requests(PlannedWorkload& work, double factor) {
  const auto all = work.requests.size();
  const auto wanted =
      static_cast<std::size_t>(std::max(1.0, std::round(factor * static_cast<double>(all))));
  for (std::size_t i = all; i < wanted; ++i) work.requests.push_back(work.requests[i % all]);
  work.requests.resize(wanted);
}

WhatIf tried(const std::string& change, const PlanInput& input, const Division& division) {
  WhatIf result{change, 0, ""};
  try {
    const PlannedLayout layout = plan_layout(input, division, coarse_detail(input.ranks));
    result.problem = layout.memory.problem;
    result.tokens_per_s = layout.tokens_per_s();
  } catch (const Error& error) {
    result.problem = error.what();
  }
  return result;
}

/// The best of some divisions.
Division best_of(const PlanInput& input, const std::vector<Division>& divisions) {
  Division best;
  double least = 0;
  for (const Division& division : divisions) {
    const PlannedLayout layout = plan_layout(input, division, coarse_detail(input.ranks));
    if (!layout.memory.fits() || (least > 0 && layout.seconds >= least)) continue;
    least = layout.seconds;
    best = division;
  }
  return best;
}

}  // namespace

std::vector<WhatIf> what_ifs(const PlanInput& input, const PlannedLayout& layout) {
  std::vector<WhatIf> changes = {tried("as it is", input, layout.division)};
  if (input.machine.num_nodes > 1) {
    PlanInput faster = input;
    scale_links(faster.machine, 2);
    changes.push_back(tried("twice the network between nodes", faster, layout.division));
  }
  PlanInput even = input;
  even.routing = with_skew(input, 0);
  changes.push_back(
      tried("no skew: what a bias of the gates can give at best", even, layout.division));
  PlanInput more = input;
  const int exchange =
      input.ranks / layout.division.replicas / layout.division.pp / layout.division.expert_tp;
  const int slots = (input.config.shape.num_experts + exchange - 1) / exchange;
  more.run.slots = std::max(input.run.slots, slots) + 1;
  changes.push_back(
      tried(fmt::format("{} experts of a layer on each rank, with replicas", more.run.slots), more,
            layout.division));
  return changes;
}

std::vector<ScalingPoint> scaling(const PlanInput& input, const PlannedLayout& layout) {
  std::vector<ScalingPoint> points;
  double first = 0;
  for (const int ranks : {4, 8, 16, 32, 64, 128}) {
    if (ranks > input.machine.num_ranks()) break;
    ScalingPoint point{ranks, 0, 0, ""};
    PlanInput part = input;
    part.ranks = ranks;
    scale_requests(part.work, static_cast<double>(ranks) / input.ranks);
    const Division division{1, 1, std::min(layout.division.tp, ranks), 1};
    try {
      const PlannedLayout planned = plan_layout(part, division, coarse_detail(ranks));
      point.problem = planned.memory.problem;
      point.tokens_per_s = planned.tokens_per_s();
    } catch (const Error& error) {
      point.problem = error.what();
    }
    if (point.problem.empty()) {
      if (first == 0) first = point.tokens_per_s / ranks;
      point.of_linear = point.tokens_per_s / ranks / first;
    }
    points.push_back(point);
  }
  return points;
}

std::vector<TurningPoint> turning_points(const PlanInput& input, const RankedLayouts& ranked) {
  constexpr std::size_t most = 4;
  std::vector<Division> best;
  for (const PlannedLayout& layout : ranked.fitting) {
    if (best.size() < most) best.push_back(layout.division);
  }
  using Change = std::function<void(PlanInput&, double)>;
  const std::vector<std::tuple<std::string, std::vector<double>, Change>> axes = {
      {"requests, times as many",
       {0.5, 0.25, 0.125},
       [](PlanInput& in, double by) { scale_requests(in.work, by); }},
      {"links between nodes, times as fast",
       {0.5, 0.25, 0.125, 0.0625},
       [](PlanInput& in, double by) { scale_links(in.machine, by); }},
      {"skew, sigma of log-normal loads", {0.5, 1.0, 1.5}, [&input](PlanInput& in, double by) {
         in.routing = with_skew(input, by);
       }}};
  std::vector<TurningPoint> points;
  constexpr int many = 32;  // ranks, of which only the last step of an axis is worked out
  for (const auto& [axis, steps, change] : axes) {
    TurningPoint point{axis, layout_name(best.front(), input.ranks), 0, ""};
    for (const double step : steps) {
      if (input.ranks > many && step != steps.back()) continue;
      PlanInput changed = input;
      change(changed, step);
      const Division first = best_of(changed, best);
      if (first == best.front()) continue;
      point.at = step;
      point.second = layout_name(first, input.ranks);
      break;
    }
    points.push_back(point);
  }
  return points;
}

std::string what_if_text(const std::vector<WhatIf>& changes, double tokens_per_s) {
  std::string text = "what if\n";
  for (const WhatIf& change : changes) {
    text += change.problem.empty()
                ? fmt::format("  {:<56}{:>12.0f} tokens/s, {:+.1f} %\n", change.change,
                              change.tokens_per_s, 100 * (change.tokens_per_s / tokens_per_s - 1))
                : fmt::format("  {:<56}{}\n", change.change, change.problem);
  }
  return text;
}

std::string scaling_text(const std::vector<ScalingPoint>& points) {
  std::string text = "expert parallelism over more ranks, each with as many requests\n";
  for (const ScalingPoint& point : points) {
    text += point.problem.empty() ? fmt::format("  EP {:<5}{:>12.0f} tokens/s, {:.2f} of linear\n",
                                                point.ranks, point.tokens_per_s, point.of_linear)
                                  : fmt::format("  EP {:<5}{}\n", point.ranks, point.problem);
  }
  return text;
}

std::string turning_text(const std::vector<TurningPoint>& points) {
  std::string text = "where another layout comes first, of the best four\n";
  for (const TurningPoint& point : points) {
    text += point.at > 0 ? fmt::format("  {}: {} from {} on\n", point.axis, point.second, point.at)
                         : fmt::format("  {}: {} stays first\n", point.axis, point.first);
  }
  return text;
}

nlohmann::ordered_json what_if_json(const std::vector<WhatIf>& changes,
                                    const std::vector<ScalingPoint>& points,
                                    const std::vector<TurningPoint>& turns) {
  nlohmann::ordered_json json = {{"what_if", nlohmann::ordered_json::array()},
                                 {"scaling", nlohmann::ordered_json::array()},
                                 {"turning_points", nlohmann::ordered_json::array()}};
  for (const WhatIf& c : changes) {
    json["what_if"].push_back(
        {{"change", c.change}, {"tokens_per_s", c.tokens_per_s}, {"problem", c.problem}});
  }
  for (const ScalingPoint& p : points) {
    json["scaling"].push_back({{"ranks", p.ranks},
                               {"tokens_per_s", p.tokens_per_s},
                               {"of_linear", p.of_linear},
                               {"problem", p.problem}});
  }
  for (const TurningPoint& t : turns) {
    json["turning_points"].push_back(
        {{"axis", t.axis}, {"first", t.first}, {"at", t.at}, {"second", t.second}});
  }
  return json;
}

}  // namespace atl
