#include "app/run/plan.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <optional>
#include <utility>

#include "app/config_layout.hpp"
#include "app/model/checked_config.hpp"
#include "app/model/described_model.hpp"
#include "app/plan/in_parallel.hpp"
#include "app/plan/plan_checks.hpp"
#include "app/plan/plan_graph.hpp"
#include "app/run/machine_file.hpp"
#include "app/run/memory_fit.hpp"
#include "app/run/plan_files.hpp"
#include "app/run/plan_text.hpp"
#include "app/run/plan_what_if.hpp"
#include "app/run/routing_sample.hpp"
#include "compute/error.hpp"
#include "io/json_shown.hpp"
#include "io/model_file.hpp"

namespace atl {

namespace {

ModelConfig model_of(const PlanOptions& options) {
  if (!options.preset.empty()) return preset(options.preset);
  if (!options.config.empty()) return described_model(options.config, options.weights);
  if (!options.hf.empty()) return described_model(options.hf + "/config.json", options.weights);
  if (!options.model.empty()) return checked_config(io::ModelFileReader(options.model));
  throw UsageError(
      "plan: of which model? Give --preset, --config, --model or --hf; see atoll plan --help");
}

/// A trace by the model's layers.
RoutingSource routing_of(const PlanOptions& options, const ModelShape& shape) {
  if (options.routing.empty()) {
    return {RoutingLaw{options.skew, options.seed}, shape.num_layers, shape.num_experts,
            shape.top_k};
  }
  SampleOptions sample;
  sample.path = options.routing;
  const RoutingSample read = read_sample(sample);
  std::vector<int> moe_layers;
  for (int layer = 0; layer < shape.num_layers; ++layer) {
    if (!shape.is_dense(layer)) moe_layers.push_back(layer);
  }
  const ExpertChoices& first = read.made_from.front();
  require(read.layers.size() == moe_layers.size() && first.num_experts <= shape.num_experts &&
              first.top_k >= shape.top_k,
          "{} is of {} layers, {} experts and {} of them for a token, and the model has {}, {} and "
          "{}; give a trace of this model, or --skew in its place",
          options.routing, read.layers.size(), first.num_experts, first.top_k, moe_layers.size(),
          shape.num_experts, shape.top_k);
  std::vector<ExpertChoices> layers(static_cast<std::size_t>(shape.num_layers));
  for (std::size_t i = 0; i < moe_layers.size(); ++i) {
    layers[static_cast<std::size_t>(moe_layers[i])] = read.made_from[i];
  }
  return {std::move(layers), shape.top_k};
}

std::vector<int> divisors(int number) {
  std::vector<int> all;
  for (int d = 1; d <= number; ++d) {
    if (number % d == 0) all.push_back(d);
  }
  return all;
}

/// Divisions that make sense: attention and experts are shared inside nodes. Of many ranks only
/// those whose experts are whole, or shared by who shares attention: all would take an hour.
std::vector<Division> divisions_of(const PlanInput& input) {
  const ModelShape& shape = input.config.shape;
  constexpr int many = 32;
  const bool few = input.ranks <= many;
  std::vector<Division> all;
  for (const int replicas : divisors(input.ranks)) {
    for (const int pp : divisors(input.ranks / replicas)) {
      const int most_stages = few ? 8 : 4;
      if (pp > std::min(most_stages, shape.num_layers)) continue;
      const int stage = input.ranks / replicas / pp;
      for (const int tp : divisors(stage)) {
        if (tp > input.machine.ranks_of_node) continue;
        for (const int expert_tp : divisors(stage)) {
          if (expert_tp > input.machine.ranks_of_node) continue;
          if (!few && expert_tp != 1 && expert_tp != tp) continue;
          const Division division{replicas, pp, tp, expert_tp};
          try {
            require_divides(division, shape);
            all.push_back(division);
          } catch (const Error&) {
            continue;
          }
        }
      }
    }
  }
  return all;
}

bool better(const PlannedLayout& a, const PlannedLayout& b) {
  return a.seconds < b.seconds;
}

std::filesystem::path output_folder(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  require(std::filesystem::is_directory(path, error),
          "cannot make the folder {}; check --output and its permissions", path);
  return path;
}

/// Passes of each phase written out and verified; the graph of the last one. Throws Error with what
/// was found.
PlanGraph verified(const PlanInput& input, const PlannedLayout& layout, std::string& text) {
  PlanGraph graph;
  for (const Phase which : {Phase::prefill, Phase::decode}) {
    const PlannedPhase& phase = layout.of(which);
    if (phase.passes == 0) continue;
    graph = graph_of(*layout.pricer, phase.load, phase.form, layout.memory.room);
    const std::vector<PlanFinding> findings = check_plan(graph);
    std::string problems;
    for (const PlanFinding& finding : findings) problems += "; " + finding.text;
    require(findings.empty(), "layout {} cannot run{}", layout_name(layout.division, input.ranks),
            problems);
    std::size_t operations = 0, messages = 0;
    for (const RankGraph& rank : graph.ranks) {
      operations += rank.steps.size();
      for (const GraphStep& step : rank.steps) messages += step.sends.size();
    }
    text += fmt::format(
        "verified a pass of {}: {} operations on {} ranks of a network, {} messages, no fault\n",
        which == Phase::prefill ? "prefill" : "decode", operations, graph.ranks.size(), messages);
  }
  return graph;
}

/// How the model would fit this machine, where it does not by what was asked for.
std::string advice(const PlanInput& input) {
  const RankMemory memory{input.machine.memory_bytes, "", input.machine.cuda, true};
  return what_would_fit(input.run, input.config.shape, input.dtype, input.ranks, memory);
}

}  // namespace

PlanInput plan_input(const PlanOptions& options) {
  const ModelConfig config = model_of(options);
  Machine machine = read_machine(options.cluster);
  require_own(machine, options.cluster, options.run.foreign_machine);
  const int ranks = options.ranks > 0 ? options.ranks : machine.num_ranks();
  machine.nodes_of(ranks);  // refused where there are fewer
  PlannedWorkload work = read_workload(options.workload, config.shape, options.seed);
  RoutingSource routing = routing_of(options, config.shape);
  RunOptions run = options.run;
  run.backend = machine.cuda ? BackendKind::cuda : BackendKind::cpu;
  const DType dtype = run.dtype.value_or(config.dtype);
  return {std::move(machine), config, dtype, std::move(work), std::move(routing), run, ranks};
}

RankedLayouts rank_layouts(const PlanInput& input) {
  RankedLayouts ranked;
  PlanDetail detail = detail_for(input.ranks);
  const int threads = detail.coarse.threads;
  detail.samples = {1, 2};
  detail.some_layers = true;
  detail.coarse.first_network = true;
  detail.coarse.threads = 1;  // layouts run beside one another
  detail.fine = detail.coarse;
  const auto plan_all = [&](const std::vector<Division>& divisions, const PlanDetail& how) {
    std::vector<PlannedLayout> layouts(divisions.size());
    in_parallel(divisions.size(), threads,
                [&](std::size_t i) { layouts[i] = plan_layout(input, divisions[i], how); });
    return layouts;
  };
  // By what their busiest ranks compute; those behind are simulated only while one of them may
  // still be the first.
  PlanDetail bound = detail;
  bound.fine.bound = bound.coarse.bound = true;
  std::vector<PlannedLayout> bounds;
  for (PlannedLayout& layout : plan_all(divisions_of(input), bound)) {
    (layout.memory.fits() ? bounds : ranked.too_large).push_back(std::move(layout));
  }
  std::stable_sort(bounds.begin(), bounds.end(), better);
  constexpr std::size_t at_once = 8, most_simulated = 24;
  while (!bounds.empty() && ranked.fitting.size() < most_simulated) {
    if (!ranked.fitting.empty() && bounds.front().seconds > ranked.fitting.front().seconds) break;
    std::vector<Division> next;
    const std::size_t count = std::min(at_once, bounds.size());
    for (std::size_t i = 0; i < count; ++i) next.push_back(bounds[i].division);
    bounds.erase(bounds.begin(), bounds.begin() + static_cast<std::ptrdiff_t>(count));
    for (PlannedLayout& layout : plan_all(next, detail))
      ranked.fitting.push_back(std::move(layout));
    std::stable_sort(ranked.fitting.begin(), ranked.fitting.end(), better);
  }
  ranked.bounded = std::move(bounds);
  return ranked;
}

std::string plan_job(const PlanOptions& options) {
  const PlanInput input = plan_input(options);
  std::filesystem::path folder;
  if (!options.output.empty()) folder = output_folder(options.output);  // refused before the work
  std::string text = input_text(input);
  nlohmann::ordered_json json;
  PlannedLayout layout;
  std::optional<RankedLayouts> ranked;
  PlanDetail detail = detail_for(input.ranks);
  detail.fine.keep_steps = !options.output.empty();
  detail.count_bytes = true;
  if (options.all_layouts) {
    ranked = rank_layouts(input);
    require(!ranked->fitting.empty(), "the model fits no layout of {} ranks of {}; {}", input.ranks,
            input.machine.name, advice(input));
    text += ranking_text(input, *ranked);
    json["layouts"] = ranking_json(input, *ranked);
    const Division best = ranked->fitting.front().division;
    layout = plan_layout(input, best, detail);
    const std::vector<WhatIf> changes = what_ifs(input, layout);
    const std::vector<ScalingPoint> points = scaling(input, layout);
    const std::vector<TurningPoint> turns = turning_points(input, *ranked);
    text += what_if_text(changes, changes.front().tokens_per_s) + scaling_text(points) +
            turning_text(turns);
    json.update(what_if_json(changes, points, turns));
  } else {
    layout = plan_layout(input, division_of(input.run, input.ranks), detail);
    require(layout.memory.fits(), "layout {} does not fit {}: {}; {}",
            layout_name(layout.division, input.ranks), input.machine.name, layout.memory.problem,
            advice(input));
  }
  text += layout_answer(input, layout);
  const PlanGraph graph = verified(input, layout, text);
  json.update(plan_json(input, layout));
  if (folder.empty()) return text;
  write_text(folder / "plan.txt", text);
  write_text(folder / "plan.json", io::json_text(json, 1) + "\n");
  write_drawings(folder, input, layout, ranked ? &*ranked : nullptr, graph);
  const bool decodes = layout.of(Phase::decode).passes > 0;
  write_predicted_trace(folder / "trace.json", layout,
                        layout.of(decodes ? Phase::decode : Phase::prefill));
  return text + fmt::format("answer, drawings and trace are in {}: plan.html shows them\n",
                            folder.string());
}

}  // namespace atl
