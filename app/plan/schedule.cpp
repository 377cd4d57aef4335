#include "app/plan/schedule.hpp"

#include <fmt/format.h>

#include <array>
#include <utility>

#include "compute/error.hpp"

namespace atl {

const StepInfo& info_of(StepKind kind) {
  constexpr bool exchange = true;
  constexpr bool ends_phase = true;
  static constexpr std::array<StepInfo, num_step_kinds> table = {{
      {"receive", exchange, Share::pipe, ends_phase},
      {"embed", false, Share::exchange, ends_phase},
      {"attention"},
      {"norm"},
      {"gather", exchange, Share::owner, ends_phase},
      {"project"},
      {"head-sums", exchange, Share::owner, ends_phase},
      {"attend"},
      {"heads", exchange, Share::owner, ends_phase},
      {"output"},
      {"outputs", exchange, Share::owner, ends_phase},
      {"add"},
      {"mlp", false, Share::exchange, ends_phase},
      {"route"},
      {"across-counts", exchange, Share::rail},
      {"across-dispatch", exchange, Share::rail},
      {"counts", exchange, Share::node},
      {"regroup"},
      {"dispatch", exchange, Share::node, ends_phase},
      {"shared-expert"},
      {"experts"},
      {"held-counts", exchange, Share::holder},
      {"collect"},
      {"held-rows", exchange, Share::holder, ends_phase},
      {"up"},
      {"inner-rows", exchange, Share::holder, ends_phase},
      {"down"},
      {"held-results", exchange, Share::holder, ends_phase},
      {"write"},
      {"combine", exchange, Share::node, ends_phase},
      {"fold"},
      {"across-combine", exchange, Share::rail, ends_phase},
      {"merge", false, Share::exchange, ends_phase},
      {"forward", exchange, Share::pipe, ends_phase},
      {"head", false, Share::exchange, ends_phase},
      {"tokens", exchange, Share::sequences, ends_phase},
  }};
  return table[static_cast<std::size_t>(kind)];
}

std::string_view name_of(Route route) {
  return route == Route::flat ? "flat" : "nodes";
}

std::string Step::name() const {
  if (layer < 0) return fmt::format("c{} {}", chunk, name_of(kind));
  return fmt::format("L{} c{} {}", layer, chunk, name_of(kind));
}

std::uint64_t Schedule::hash() const {
  // FNV-1a: the schedule is compared between runs of one program, not stored.
  std::uint64_t value = 14695981039346656037ULL;
  const auto mix = [&value](std::uint64_t word) { value = (value ^ word) * 1099511628211ULL; };
  mix(static_cast<std::uint64_t>(num_chunks));
  mix(overlapped ? 1 : 0);
  mix(static_cast<std::uint64_t>(stage.route));
  for (const Step& step : steps) {
    mix(static_cast<std::uint64_t>(step.kind));
    mix(static_cast<std::uint64_t>(step.layer + 1));
    mix(static_cast<std::uint64_t>(step.chunk));
    for (const auto dep : step.deps) mix(static_cast<std::uint64_t>(dep) + 16);
  }
  return value;
}

namespace {

/// A step of one chunk, and of the same chunk's steps those that it waits for.
struct ChunkStep {
  StepKind kind;
  int layer;
  std::vector<std::size_t> deps;
};

std::vector<StepKind> steps_of_attention(const ModelShape& shape, const StageSteps& stage) {
  using K = StepKind;
  if (!stage.attention_shared) return {K::attention};
  std::vector<StepKind> steps = {K::norm, K::gather, K::project};
  if (shape.qk_norm == QkNorm::whole_row) steps.push_back(K::head_sums);
  steps.push_back(K::attend);
  // Summands are of own heads: these stay.
  if (!compute::is_sum(stage.output)) steps.push_back(K::heads);
  steps.push_back(K::output);
  if (stage.output != compute::OutputCut::rows) steps.insert(steps.end(), {K::outputs, K::add});
  return steps;
}

/// What one chunk does in one layer, in order.
std::vector<StepKind> steps_of_layer(const ModelShape& shape, int layer, const StageSteps& stage) {
  using K = StepKind;
  std::vector<StepKind> steps = steps_of_attention(shape, stage);
  const auto then = [&](std::initializer_list<K> more) {
    steps.insert(steps.end(), more);
    return steps;
  };
  if (shape.is_dense(layer)) return then({K::mlp});
  const bool flat = stage.route == Route::flat;
  if (flat) {
    then({K::route, K::counts, K::dispatch});
  } else {
    then({K::route, K::across_counts, K::across_dispatch, K::counts, K::regroup, K::dispatch});
  }
  if (shape.has_shared_expert()) then({K::shared_expert});
  if (stage.experts_shared) {
    then({K::held_counts, K::collect, K::held_rows, K::up, K::inner_rows, K::down, K::held_results,
          K::write});
  } else {
    then({K::experts});
  }
  return flat ? then({K::combine, K::merge})
              : then({K::combine, K::fold, K::across_combine, K::merge});
}

int end_layer_of(const ModelShape& shape, const StageSteps& stage) {
  return stage.end_layer < 0 ? shape.num_layers : stage.end_layer;
}

/// The last step of a kind so far.
std::size_t last_of(const std::vector<ChunkStep>& steps, StepKind kind) {
  std::size_t at = steps.size() - 1;
  while (steps[at].kind != kind) --at;
  return at;
}

/// Everything one chunk does, in order. A step waits for the one before it; but by Route::nodes
/// the counts inside a node go while rows are under way between nodes, those of a holder while rows
/// are on their way to it, and a shared expert is computed at any time between route and merge.
std::vector<ChunkStep> steps_of_chunk(const ModelShape& shape, const StageSteps& stage) {
  using K = StepKind;
  std::vector<ChunkStep> steps;
  std::array<std::size_t, 2> before{};  // the last two steps but for shared experts
  const auto add = [&](StepKind kind, int layer) {
    ChunkStep step{kind, layer, {}};
    if (kind == K::shared_expert) {
      step.deps = {last_of(steps, K::route)};
    } else if (kind == K::counts && stage.route == Route::nodes) {
      step.deps = {before[1]};
    } else if (kind == K::held_counts) {
      step.deps = {last_of(steps, K::counts)};
    } else if (kind == K::regroup || kind == K::collect) {
      step.deps = {before[1], before[0]};
    } else if (!steps.empty()) {
      step.deps = {before[0]};
    }
    if (kind == K::merge && shape.has_shared_expert()) {
      step.deps.push_back(last_of(steps, K::shared_expert));
    }
    if (kind != K::shared_expert) before = {steps.size(), before[0]};
    steps.push_back(std::move(step));
  };
  const int end = end_layer_of(shape, stage);
  if (stage.first_layer > 0) add(StepKind::receive, -1);
  add(StepKind::embed, -1);
  for (int layer = stage.first_layer; layer < end; ++layer) {
    for (const StepKind kind : steps_of_layer(shape, layer, stage)) add(kind, layer);
  }
  add(end == shape.num_layers ? StepKind::head : StepKind::forward, -1);
  if (stage.sequences_shared) add(StepKind::tokens, -1);
  return steps;
}

/// What fills the KV cache, chunk by chunk.
bool fills_cache(StepKind kind) {
  return kind == StepKind::attention || kind == StepKind::attend;
}

/// After which steps the other chunks get their turn. What forwards rows inside a node takes little
/// time and lets messages begin, so it goes before the arithmetic of other chunks.
bool ends_phase(StepKind kind, Route route) {
  return info_of(kind).ends_phase && !(kind == StepKind::combine && route == Route::nodes);
}

/// The steps of all chunks phase by phase: within a layer first what leads to an exchange, for all
/// chunks, so that the network is busy as early as possible; then experts as rows arrive. Each
/// waits for what it uses in its own chunk.
std::vector<Step> interleave(const ModelShape& shape, const StageSteps& stage, int num_chunks) {
  const std::vector<ChunkStep> wanted = steps_of_chunk(shape, stage);
  std::vector<std::vector<std::int32_t>> index_of(static_cast<std::size_t>(num_chunks));
  std::vector<Step> steps;
  while (index_of.back().size() < wanted.size()) {
    for (std::size_t c = 0; c < index_of.size(); ++c) {
      bool phase_ends = false;
      while (!phase_ends && index_of[c].size() < wanted.size()) {
        const ChunkStep& next = wanted[index_of[c].size()];
        Step step{
            next.kind, static_cast<std::int16_t>(next.layer), static_cast<std::int16_t>(c), {}};
        for (const std::size_t dep : next.deps) step.deps.push_back(index_of[c][dep]);
        index_of[c].push_back(static_cast<std::int32_t>(steps.size()));
        steps.push_back(std::move(step));
        phase_ends = ends_phase(next.kind, stage.route);
      }
    }
  }
  return steps;
}

}  // namespace

Schedule overlapped_schedule(const ModelShape& shape, int num_chunks, const StageSteps& stage) {
  Schedule schedule{interleave(shape, stage, num_chunks), num_chunks, true, stage};
  std::vector<std::int32_t> last_of_layer(static_cast<std::size_t>(shape.num_layers), -1);
  for (std::size_t i = 0; i < schedule.steps.size(); ++i) {
    Step& step = schedule.steps[i];
    if (!fills_cache(step.kind)) continue;
    auto& last = last_of_layer[static_cast<std::size_t>(step.layer)];
    if (step.chunk > 0) step.deps.push_back(last);
    last = static_cast<std::int32_t>(i);
  }
  return schedule;
}

Schedule serial_schedule(const ModelShape& shape, int num_chunks, const StageSteps& stage) {
  Schedule schedule{interleave(shape, stage, num_chunks), num_chunks, false, stage};
  for (std::size_t i = 0; i < schedule.steps.size(); ++i) {
    schedule.steps[i].deps.clear();
    if (i > 0) schedule.steps[i].deps.push_back(static_cast<std::int32_t>(i) - 1);
  }
  return schedule;
}

namespace {

/// Goes through a schedule and knows what has come before.
class Verifier {
 public:
  Verifier(const Schedule& schedule, const ModelShape& shape)
      : schedule_(schedule),
        wanted_(steps_of_chunk(shape, schedule.stage)),
        seen_(static_cast<std::size_t>(schedule.num_chunks)),
        attention_(static_cast<std::size_t>(shape.num_layers), -1) {}

  void run() {
    for (std::size_t i = 0; i < schedule_.steps.size(); ++i) check_step(i);
    for (std::size_t c = 0; c < seen_.size(); ++c) {
      require(seen_[c].size() == wanted_.size(), "schedule: chunk {} has {} steps instead of {}", c,
              seen_[c].size(), wanted_.size());
    }
  }

 private:
  // Direct dependencies suffice, since both builders give them; a serial one waits for everything
  // before the step that it waits for.
  bool waits(const Step& step, std::int32_t on) const {
    for (const auto dep : step.deps) {
      if (dep == on || (!schedule_.overlapped && dep >= on)) return true;
    }
    return false;
  }

  void check_step(std::size_t i) {
    const Step& step = schedule_.steps[i];
    require(step.chunk >= 0 && step.chunk < schedule_.num_chunks, "schedule: {} has no such chunk",
            step.name());
    for (const auto dep : step.deps) {
      require(dep >= 0 && dep < static_cast<std::int32_t>(i),
              "schedule: {} depends on a step that does not come before it", step.name());
    }
    auto& seen = seen_[static_cast<std::size_t>(step.chunk)];
    const std::size_t at = seen.size();
    require(at < wanted_.size(), "schedule: chunk {} has more than {} steps", step.chunk,
            wanted_.size());
    const ChunkStep& wanted = wanted_[at];
    require(step.kind == wanted.kind && step.layer == wanted.layer,
            "schedule: chunk {} has {} where {} belongs", step.chunk, step.name(),
            Step{wanted.kind, static_cast<std::int16_t>(wanted.layer), step.chunk, {}}.name());
    for (const std::size_t dep : wanted.deps) {
      require(waits(step, seen[dep]), "schedule: {} does not wait for {} in its chunk", step.name(),
              schedule_.steps[static_cast<std::size_t>(seen[dep])].name());
    }
    seen.push_back(static_cast<std::int32_t>(i));
    if (!fills_cache(step.kind)) return;
    auto& before = attention_[static_cast<std::size_t>(step.layer)];
    require(before < 0 || waits(step, before),
            "schedule: {} does not wait for the attention of the chunk before it", step.name());
    before = static_cast<std::int32_t>(i);
  }

  const Schedule& schedule_;
  std::vector<ChunkStep> wanted_;
  std::vector<std::vector<std::int32_t>> seen_;  // [chunks], indices of its steps so far
  std::vector<std::int32_t> attention_;          // [layers], the last one
};

}  // namespace

void verify(const Schedule& schedule, const ModelShape& shape) {
  Verifier(schedule, shape).run();
}

}  // namespace atl
