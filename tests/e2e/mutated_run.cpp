// `atoll run` of a plan that is wrong on one rank: that rank's schedules are changed after all
// ranks have agreed on them. What a run does then must be an end with a message, never results.
//
//   mpirun -n 4 mutated_run RANK MUTATION --model m.h5 ...
//
// MUTATION: swapped (two exchanges in the other order), dropped (an exchange that this rank leaves
// out), back-edge (a step that waits for a later one), early (an exchange before what it sends is
// there).
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "app/config.hpp"
#include "app/plan/schedule.hpp"
#include "app/run/run.hpp"
#include "comm/communicator.hpp"
#include "comm/environment.hpp"
#include "comm/watchdog.hpp"

namespace {

using namespace atl;
using Schedules = std::vector<Schedule>;

int mutated_rank = -1;
std::string_view mutation;

/// The first step of a kind in a chunk, from `from` on.
std::size_t find(const Schedule& schedule, StepKind kind, int chunk, std::size_t from = 0) {
  const auto found =
      std::find_if(schedule.steps.begin() + static_cast<std::ptrdiff_t>(from), schedule.steps.end(),
                   [&](const Step& step) { return step.kind == kind && step.chunk == chunk; });
  if (found == schedule.steps.end()) fail("no step of kind {} to change", name_of(kind));
  return static_cast<std::size_t>(found - schedule.steps.begin());
}

/// Others wait for what `step` waited for, and the step is gone.
void drop(Schedule& schedule, std::size_t step) {
  const auto gone = static_cast<std::int32_t>(step);
  const std::vector<std::int32_t> before = schedule.steps[step].deps;
  schedule.steps.erase(schedule.steps.begin() + gone);
  for (Step& other : schedule.steps) {
    if (std::erase(other.deps, gone) > 0) {
      other.deps.insert(other.deps.end(), before.begin(), before.end());
    }
    std::sort(other.deps.begin(), other.deps.end());
    other.deps.erase(std::unique(other.deps.begin(), other.deps.end()), other.deps.end());
    for (std::int32_t& dep : other.deps) dep -= dep > gone ? 1 : 0;
  }
}

void change(Schedule& schedule) {
  std::vector<Step>& steps = schedule.steps;
  if (mutation == "swapped") {
    // In a schedule without overlap each waits for the one before: the others go the other way
    // round.
    const std::size_t first = find(schedule, StepKind::dispatch, 0);
    const std::size_t second = find(schedule, StepKind::dispatch, 1);
    std::swap(steps[first].chunk, steps[second].chunk);
  } else if (mutation == "dropped") {
    drop(schedule, find(schedule, StepKind::combine, 0));
  } else if (mutation == "back-edge") {
    const std::size_t route = find(schedule, StepKind::route, 0);
    steps[route].deps.push_back(
        static_cast<std::int32_t>(find(schedule, StepKind::merge, 0, route)));
  } else if (mutation == "early") {
    drop(schedule, find(schedule, StepKind::counts, 0));
  } else {
    throw UsageError(fmt::format("unknown mutation {}", mutation));
  }
}

}  // namespace

// The linker sends calls of agreed_schedules() here (--wrap).
Schedules agreed(const comm::Communicator& stage, const ModelShape& shape, int max_chunks,
                 bool overlap, const StageSteps& steps) asm("__real_" ATL_AGREED_SCHEDULES);
Schedules changed(const comm::Communicator& stage, const ModelShape& shape, int max_chunks,
                  bool overlap, const StageSteps& steps) asm("__wrap_" ATL_AGREED_SCHEDULES);

Schedules changed(const comm::Communicator& stage, const ModelShape& shape, int max_chunks,
                  bool overlap, const StageSteps& steps) {
  Schedules schedules = agreed(stage, shape, max_chunks, overlap, steps);
  // A pass has the chunks that it needs; those of one chunk have no second to swap with.
  for (Schedule& schedule : schedules) {
    if (stage.rank() == mutated_rank && schedule.num_chunks == max_chunks) change(schedule);
  }
  return schedules;
}

int main(int argc, char** argv) {
  comm::Watchdog watchdog;
  const comm::Environment environment(&argc, &argv);
  const comm::Communicator world = comm::Communicator::world();
  try {
    watchdog.connect(world);
    if (argc < 3) throw UsageError("give a rank, a mutation, and options of atoll run");
    mutated_rank = std::atoi(argv[1]);
    mutation = argv[2];
    std::vector<const char*> arguments = {"atoll", "run"};
    arguments.insert(arguments.end(), argv + 3, argv + argc);
    run_job(world, parse_command_line(static_cast<int>(arguments.size()), arguments.data()).run);
    return 0;
  } catch (const comm::AgreedFailure& failure) {
    if (failure.reporter()) fmt::print(stderr, "atoll: {}\n", failure.what());
    return failure.exit_code();
  } catch (const std::exception& error) {
    if (world.size() > 1) watchdog.abort(world, error.what());
    fmt::print(stderr, "atoll: {}\n", error.what());
    return 1;
  }
}
