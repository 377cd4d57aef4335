#include "app/plan/schedule.hpp"

#include <fmt/format.h>

#include <array>

#include "compute/error.hpp"

namespace atl {

std::string_view name_of(StepKind kind) {
  constexpr std::array<std::string_view, num_step_kinds> names = {
      "embed",    "attention", "mlp",     "route", "counts",
      "dispatch", "experts",   "combine", "merge", "head"};
  return names[static_cast<std::size_t>(kind)];
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
  for (const Step& step : steps) {
    mix(static_cast<std::uint64_t>(step.kind));
    mix(static_cast<std::uint64_t>(step.layer + 1));
    mix(static_cast<std::uint64_t>(step.chunk));
    for (const auto dep : step.deps) mix(static_cast<std::uint64_t>(dep) + 16);
  }
  return value;
}

namespace {

/// What one chunk does in one layer, in order.
std::vector<StepKind> steps_of_layer(const ModelShape& shape, int layer) {
  if (shape.is_dense(layer)) return {StepKind::attention, StepKind::mlp};
  return {StepKind::attention, StepKind::route,   StepKind::counts, StepKind::dispatch,
          StepKind::experts,   StepKind::combine, StepKind::merge};
}

/// Everything one chunk does, in order.
std::vector<Step> steps_of_chunk(const ModelShape& shape, int chunk) {
  std::vector<Step> steps;
  const auto add = [&](StepKind kind, int layer) {
    steps.push_back({kind, static_cast<std::int16_t>(layer), static_cast<std::int16_t>(chunk), {}});
  };
  add(StepKind::embed, -1);
  for (int layer = 0; layer < shape.num_layers; ++layer) {
    for (const StepKind kind : steps_of_layer(shape, layer)) add(kind, layer);
  }
  add(StepKind::head, -1);
  return steps;
}

/// Appends the chunks' steps phase by phase: within a layer first what leads to an exchange, for
/// all chunks, so that the network is busy as early as possible; then experts as rows arrive.
std::vector<Step> interleave(const std::vector<std::vector<Step>>& chunks) {
  std::vector<Step> steps;
  std::vector<std::size_t> at(chunks.size(), 0);
  const auto ends_phase = [](StepKind kind) {
    return kind == StepKind::embed || kind == StepKind::mlp || kind == StepKind::dispatch ||
           kind == StepKind::combine || kind == StepKind::merge || kind == StepKind::head;
  };
  while (at[0] < chunks[0].size()) {
    for (std::size_t c = 0; c < chunks.size(); ++c) {
      StepKind kind{};
      do {
        kind = chunks[c][at[c]].kind;
        steps.push_back(chunks[c][at[c]++]);
      } while (!ends_phase(kind));
    }
  }
  return steps;
}

}  // namespace

Schedule overlapped_schedule(const ModelShape& shape, int num_chunks) {
  std::vector<std::vector<Step>> chunks;
  for (int c = 0; c < num_chunks; ++c) chunks.push_back(steps_of_chunk(shape, c));
  Schedule schedule{interleave(chunks), num_chunks, true};
  std::vector<std::int32_t> last_of_chunk(static_cast<std::size_t>(num_chunks), -1);
  std::int32_t last_attention = -1;
  for (std::size_t i = 0; i < schedule.steps.size(); ++i) {
    Step& step = schedule.steps[i];
    auto& last = last_of_chunk[static_cast<std::size_t>(step.chunk)];
    if (last >= 0) step.deps.push_back(last);
    last = static_cast<std::int32_t>(i);
    if (step.kind == StepKind::attention) {
      if (step.chunk > 0) step.deps.push_back(last_attention);
      last_attention = last;
    }
  }
  return schedule;
}

Schedule serial_schedule(const ModelShape& shape, int num_chunks) {
  std::vector<std::vector<Step>> chunks;
  for (int c = 0; c < num_chunks; ++c) chunks.push_back(steps_of_chunk(shape, c));
  Schedule schedule{interleave(chunks), num_chunks, false};
  for (std::size_t i = 1; i < schedule.steps.size(); ++i) {
    schedule.steps[i].deps.push_back(static_cast<std::int32_t>(i) - 1);
  }
  return schedule;
}

void verify(const Schedule& schedule, const ModelShape& shape) {
  std::vector<std::vector<Step>> seen(static_cast<std::size_t>(schedule.num_chunks));
  std::vector<std::int32_t> last(seen.size(), -1);
  std::vector<std::int32_t> attention(static_cast<std::size_t>(shape.num_layers), -1);
  // reachable[i] would be quadratic; direct dependencies suffice, since both builders give them.
  const auto depends = [&](std::size_t step, std::int32_t on) {
    for (const auto dep : schedule.steps[step].deps) {
      if (dep == on || (!schedule.overlapped && dep >= on)) return true;
    }
    return false;
  };
  for (std::size_t i = 0; i < schedule.steps.size(); ++i) {
    const Step& step = schedule.steps[i];
    require(step.chunk >= 0 && step.chunk < schedule.num_chunks, "schedule: {} has no such chunk",
            step.name());
    for (const auto dep : step.deps) {
      require(dep >= 0 && dep < static_cast<std::int32_t>(i),
              "schedule: {} depends on a step that does not come before it", step.name());
    }
    const auto c = static_cast<std::size_t>(step.chunk);
    require(last[c] < 0 || depends(i, last[c]),
            "schedule: {} does not wait for the step before it in its chunk", step.name());
    last[c] = static_cast<std::int32_t>(i);
    seen[c].push_back(step);
    if (step.kind == StepKind::attention) {
      auto& before = attention[static_cast<std::size_t>(step.layer)];
      require(before < 0 || depends(i, before),
              "schedule: {} does not wait for the attention of the chunk before it", step.name());
      before = static_cast<std::int32_t>(i);
    }
  }
  for (std::size_t c = 0; c < seen.size(); ++c) {
    const auto wanted = steps_of_chunk(shape, static_cast<int>(c));
    require(seen[c].size() == wanted.size(), "schedule: chunk {} has {} steps instead of {}", c,
            seen[c].size(), wanted.size());
    for (std::size_t i = 0; i < wanted.size(); ++i) {
      require(seen[c][i].kind == wanted[i].kind && seen[c][i].layer == wanted[i].layer,
              "schedule: chunk {} has {} where {} belongs", c, seen[c][i].name(), wanted[i].name());
    }
  }
}

}  // namespace atl
