#include "app/run/auto_layout.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <utility>

#include "app/run/machine_file.hpp"
#include "app/run/plan.hpp"
#include "compute/error.hpp"
#include "io/model_text.hpp"
#include "io/requests.hpp"

namespace atl {

namespace {

/// So many say what all are like.
constexpr std::int64_t most_requests = 4096;

PlannedWorkload workload_of(const RunOptions& options, const OpenModel& model) {
  std::error_code ignored;
  require(std::filesystem::is_regular_file(options.input, ignored),
          "--layout auto: {} is no file, which would be read once more to plan; name a layout",
          options.input);
  const io::ModelText text(*model.file, model.config.shape.vocab, /*encodes=*/true);
  io::RequestLimits limits;
  limits.vocab = model.config.shape.vocab;
  limits.max_positions = model.config.shape.max_positions;
  limits.default_max_tokens = options.max_tokens;
  limits.scoring = options.mode == Mode::score;
  limits.text = &text;
  limits.format = options.format;
  io::RequestReader reader(options.input, limits);
  PlannedWorkload work;
  work.scoring = limits.scoring;
  for (const io::Request& request : reader.read(most_requests, /*all_cores=*/false)) {
    if (!request.error.empty()) continue;
    const int tokens = request.max_tokens.value_or(options.max_tokens);
    work.requests.push_back({std::max<std::int64_t>(1, std::ssize(request.tokens)),
                             work.scoring ? 0 : std::max(1, tokens)});
  }
  require(!work.requests.empty(), "--layout auto: there is no request to plan with; name a layout");
  return work;
}

Division planned(const RunOptions& options, const OpenModel& model, const Ranks& ranks) {
  require(!options.machine.empty(),
          "--layout auto: which machine? Give --machine, a file of perf/calibrate");
  Machine machine = read_machine(options.machine);
  require_own(machine, options.machine, options.foreign_machine);
  const int num_ranks = ranks.topology.num_ranks();
  require(
      machine.num_ranks() >= num_ranks && machine.nodes_of(num_ranks) == ranks.topology.node_of,
      "--layout auto: {} is of {} nodes of {} ranks, and this job has {} ranks on {}; calibrate "
      "with as many ranks on each node",
      options.machine, machine.num_nodes, machine.ranks_of_node, num_ranks,
      ranks.topology.num_nodes());
  const ModelShape& shape = model.config.shape;
  RunOptions open = options;
  open.layout.clear();
  open.backend = ranks.choice.cuda ? BackendKind::cuda : BackendKind::cpu;
  machine.cuda = ranks.choice.cuda;
  const RoutingSource routing(RoutingLaw{}, shape.num_layers, shape.num_experts, shape.top_k);
  const PlanInput input{
      std::move(machine), model.config, model.dtype, workload_of(options, model), routing, open,
      num_ranks};
  const RankedLayouts ranked = rank_layouts(input);
  require(!ranked.fitting.empty(), "--layout auto: no layout of {} ranks fits; use more of them",
          num_ranks);
  const PlannedLayout& best = ranked.fitting.front();
  fmt::print(stderr, "--layout auto: {}, the first of {} that fit, planned at {:.0f} tokens/s\n",
             layout_name(best.division, num_ranks), ranked.fitting.size(), best.tokens_per_s());
  return best.division;
}

}  // namespace

Division planned_division(const comm::Communicator& world, const RunOptions& options,
                          const OpenModel& model, const Ranks& ranks) {
  Division division;
  world.agree([&] {
    if (world.rank() == 0) division = planned(options, model, ranks);
  });
  return world.broadcast_value(division, 0);
}

}  // namespace atl
