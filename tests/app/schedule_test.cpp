#include "app/plan/schedule.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "app/model/model_config.hpp"
#include "compute/error.hpp"
#include "tests/app/plan_shapes.hpp"

namespace atl {
namespace {

TEST(Schedule, EveryChunkRunsThroughEveryLayerInBothOrders) {
  const ModelShape shape = shape_with(5, 2);
  for (int chunks = 1; chunks <= 8; ++chunks) {
    for (const Schedule& schedule :
         {overlapped_schedule(shape, chunks), serial_schedule(shape, chunks)}) {
      EXPECT_NO_THROW(verify(schedule, shape));
      // embed + head + 2 dense layers of 2 steps + 3 MoE layers of 7 steps
      EXPECT_EQ(schedule.steps.size(), static_cast<std::size_t>(chunks) * (2 + 2 * 2 + 3 * 7));
    }
    for (const Schedule& schedule : {overlapped_schedule(shape, chunks, {.route = Route::nodes}),
                                     serial_schedule(shape, chunks, {.route = Route::nodes})}) {
      EXPECT_NO_THROW(verify(schedule, shape));
      EXPECT_EQ(schedule.steps.size(), static_cast<std::size_t>(chunks) * (2 + 2 * 2 + 3 * 12));
    }
  }
}

std::vector<StepKind> kinds_of(const Schedule& schedule) {
  std::vector<StepKind> kinds;
  for (const Step& step : schedule.steps) kinds.push_back(step.kind);
  return kinds;
}

TEST(Schedule, ASharedExpertRunsWhileRowsTravel) {
  using K = StepKind;
  ModelShape shape = shape_with(1, 0);
  shape.shared_intermediate = 8;
  const Schedule flat = overlapped_schedule(shape, 1);
  EXPECT_EQ(kinds_of(flat),
            (std::vector<K>{K::embed, K::attention, K::route, K::counts, K::dispatch,
                            K::shared_expert, K::experts, K::combine, K::merge, K::head}));
  EXPECT_EQ(flat.steps[5].deps, std::vector<std::int32_t>{2});       // of route
  EXPECT_EQ(flat.steps[6].deps, std::vector<std::int32_t>{4});       // experts: of dispatch
  EXPECT_EQ(flat.steps[8].deps, (std::vector<std::int32_t>{7, 5}));  // merge: of both
  for (const Route route : {Route::flat, Route::nodes}) {
    for (const bool shared : {false, true}) {
      const StageSteps stage{.route = route, .experts_shared = shared};
      EXPECT_NO_THROW(verify(overlapped_schedule(shape, 3, stage), shape));
      EXPECT_NO_THROW(verify(serial_schedule(shape, 3, stage), shape));
    }
  }
}

TEST(Schedule, SharedAttentionMovesRowsThereAndHeadsBack) {
  using K = StepKind;
  ModelShape shape = shape_with(1, 1);
  StageSteps stage{.attention_shared = true, .sequences_shared = true};
  stage.output = compute::OutputCut::columns;
  const std::vector<K> columns = {K::embed,  K::norm,  K::gather, K::project,
                                  K::attend, K::heads, K::output, K::outputs,
                                  K::add,    K::mlp,   K::head,   K::tokens};
  EXPECT_EQ(kinds_of(overlapped_schedule(shape, 1, stage)), columns);
  stage.output = compute::OutputCut::rows;
  shape.qk_norm = QkNorm::whole_row;
  const std::vector<K> rows = {K::embed, K::norm,   K::gather, K::project, K::head_sums, K::attend,
                               K::heads, K::output, K::mlp,    K::head,    K::tokens};
  EXPECT_EQ(kinds_of(overlapped_schedule(shape, 1, stage)), rows);
  stage.output = compute::OutputCut::sum;
  const std::vector<K> sums = {K::embed,     K::norm,   K::gather, K::project,
                               K::head_sums, K::attend, K::output, K::outputs,
                               K::add,       K::mlp,    K::head,   K::tokens};
  EXPECT_EQ(kinds_of(overlapped_schedule(shape, 1, stage)), sums);
}

TEST(Schedule, StagesHaveTheirLayersAndForwardToTheNext) {
  const ModelShape shape = shape_with(6, 2);
  for (int first = 0; first < 6; first += 2) {
    for (const int chunks : {1, 3}) {
      const StageSteps stage{
          .first_layer = first, .end_layer = first + 2, .sequences_shared = true};
      const Schedule schedule = overlapped_schedule(shape, chunks, stage);
      EXPECT_NO_THROW(verify(schedule, shape));
      const auto kinds = kinds_of(schedule);
      const auto count = [&](StepKind kind) {
        return std::count(kinds.begin(), kinds.end(), kind);
      };
      EXPECT_EQ(count(StepKind::embed), chunks);
      EXPECT_EQ(count(StepKind::receive), first == 0 ? 0 : chunks);
      EXPECT_EQ(count(StepKind::forward), first == 4 ? 0 : chunks);
      EXPECT_EQ(count(StepKind::head), first == 4 ? chunks : 0);
      EXPECT_EQ(count(StepKind::tokens), chunks);
      EXPECT_EQ(count(StepKind::attention), 2 * chunks);
    }
  }
}

/// In every layer, what fills the KV cache for a chunk waits for the chunk before.
TEST(Schedule, ChunksFillTheCacheInTurnWhereAttentionIsShared) {
  const ModelShape shape = shape_with(4, 1);
  const Schedule schedule = overlapped_schedule(
      shape, 4, {.attention_shared = true, .output = compute::OutputCut::columns});
  EXPECT_NO_THROW(verify(schedule, shape));
  std::map<std::pair<int, int>, std::int32_t> attend;  // layer, chunk
  for (std::size_t i = 0; i < schedule.steps.size(); ++i) {
    const Step& step = schedule.steps[i];
    if (step.kind != StepKind::attend) continue;
    attend[{step.layer, step.chunk}] = static_cast<std::int32_t>(i);
    if (step.chunk == 0) continue;
    const auto before = attend.at({step.layer, step.chunk - 1});
    EXPECT_TRUE(std::count(step.deps.begin(), step.deps.end(), before) == 1) << step.name();
  }
  EXPECT_EQ(attend.size(), 16U);
}

TEST(Schedule, SerialOrderIsOneChain) {
  const Schedule schedule = serial_schedule(shape_with(3, 1), 3);
  for (std::size_t i = 1; i < schedule.steps.size(); ++i) {
    EXPECT_EQ(schedule.steps[i].deps, std::vector<std::int32_t>{static_cast<std::int32_t>(i) - 1});
  }
}

/// Steps that `step` waits for, directly or through others.
std::set<std::int32_t> waits_for(const Schedule& schedule, std::int32_t step) {
  std::set<std::int32_t> all;
  std::vector<std::int32_t> open{step};
  while (!open.empty()) {
    const auto at = open.back();
    open.pop_back();
    for (const auto dep : schedule.steps[static_cast<std::size_t>(at)].deps) {
      if (all.insert(dep).second) open.push_back(dep);
    }
  }
  return all;
}

TEST(Schedule, AnotherChunkMayComputeWhileOneTravels) {
  const Schedule schedule = overlapped_schedule(shape_with(4, 0), 2);
  const auto index = [&](StepKind kind, int layer, int chunk) {
    const auto found = std::find_if(
        schedule.steps.begin(), schedule.steps.end(),
        [&](const Step& s) { return s.kind == kind && s.layer == layer && s.chunk == chunk; });
    return static_cast<std::int32_t>(found - schedule.steps.begin());
  };
  const auto dispatch = index(StepKind::dispatch, 1, 0);
  const auto other = index(StepKind::attention, 1, 1);
  EXPECT_FALSE(waits_for(schedule, other).contains(dispatch));
  EXPECT_FALSE(waits_for(schedule, dispatch).contains(other));
  // and enters the next layer without waiting for the other chunk's experts
  EXPECT_FALSE(waits_for(schedule, index(StepKind::attention, 2, 0))
                   .contains(index(StepKind::experts, 1, 1)));
  // but keys and values of the earlier chunk come first
  EXPECT_TRUE(waits_for(schedule, index(StepKind::attention, 2, 1))
                  .contains(index(StepKind::attention, 2, 0)));
}

TEST(Schedule, VerifyNoticesBrokenSchedules) {
  const ModelShape shape = shape_with(3, 1);
  const Schedule good = overlapped_schedule(shape, 2);
  Schedule missing = good;
  missing.steps.pop_back();
  EXPECT_THROW(verify(missing, shape), Error);
  Schedule forward = good;
  forward.steps[3].deps = {7};
  EXPECT_THROW(verify(forward, shape), Error);
  Schedule swapped = good;
  const auto at = std::find_if(swapped.steps.begin(), swapped.steps.end(),
                               [](const Step& s) { return s.kind == StepKind::dispatch; });
  std::swap(at->kind, (at - 1)->kind);
  EXPECT_THROW(verify(swapped, shape), Error);
  for (std::size_t i = 1; i < good.steps.size(); ++i) {
    if (good.steps[i].deps.empty()) continue;
    Schedule unordered = good;
    unordered.steps[i].deps.clear();
    EXPECT_THROW(verify(unordered, shape), Error) << good.steps[i].name();
  }
}

TEST(Schedule, HashTellsSchedulesApart) {
  const ModelShape shape = shape_with(4, 1);
  std::set<std::uint64_t> hashes;
  for (int chunks = 1; chunks <= 8; ++chunks) {
    hashes.insert(overlapped_schedule(shape, chunks).hash());
    hashes.insert(serial_schedule(shape, chunks).hash());
    hashes.insert(overlapped_schedule(shape, chunks, {.route = Route::nodes}).hash());
  }
  hashes.insert(overlapped_schedule(shape_with(4, 0), 1).hash());
  EXPECT_EQ(hashes.size(), 25U);
  EXPECT_EQ(overlapped_schedule(shape, 3).hash(), overlapped_schedule(shape, 3).hash());
}

}  // namespace
}  // namespace atl
