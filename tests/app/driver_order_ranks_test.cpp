// ranks: 1
//
// The simulator runs what the driver runs: given the same costs, both enqueue and post the same
// steps in the same order, at the same times.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "app/model/model_config.hpp"
#include "app/plan/simulator.hpp"
#include "app/run/driver.hpp"
#include "app/run/request_needs.hpp"
#include "app/run/request_queue.hpp"
#include "tests/mpi_main.hpp"

namespace atl {
namespace {

using Costs = std::map<std::string, double>;

struct Launch {
  std::string step;
  double time = 0;
};

/// A clock that goes on only when nothing can happen before: to the next end of anything.
class VirtualClock {
 public:
  double now = 0;
  std::vector<double> ends;  // of all that is under way

  void advance() {
    double next = -1;
    for (const double end : ends) {
      if (end > now && (next < 0 || end < next)) next = end;
    }
    if (next > 0) now = next;
    std::erase_if(ends, [this](double end) { return end <= now; });
  }
};

struct Stage {
  VirtualClock clock;
  Costs costs;
  std::vector<Launch> launches;

  double cost_of(const std::string& step) {
    launches.push_back({step, clock.now});
    return costs.at(step);
  }
};

class PlainChunk final : public compute::Chunk {
 public:
  int number = 0;
  void reserve_receive(std::int64_t) override {}
  void reserve_experts(const compute::ExpertRoom&) override {}
  void reserve_across(const compute::NodeRows&, std::int64_t) override {}
};

/// Operations take what the table says, on the virtual clock.
class CostedBackend final : public compute::Backend {
 public:
  explicit CostedBackend(Stage& stage) : stage_(stage) {}

  std::string description() const override { return "costs in place of arithmetic"; }
  void load_weight(compute::Weight, int, int, const HostTensor&) override {}
  void finish_loading() override {}
  std::unique_ptr<compute::Chunk> make_chunk() override {
    auto chunk = std::make_unique<PlainChunk>();
    chunk->number = num_chunks_++;
    return chunk;
  }
  compute::Event embed(compute::Chunk& c) override { return run(StepKind::embed, -1, c); }
  compute::Event attention(compute::Chunk& c, int layer, compute::AttentionPart) override {
    return run(StepKind::attention, layer, c);
  }
  compute::Event mlp(compute::Chunk& c, int layer) override { return run(StepKind::mlp, layer, c); }
  compute::Event route(compute::Chunk& c, int layer, compute::RouteTo) override {
    return run(StepKind::route, layer, c);
  }
  compute::Event regroup(compute::Chunk& c, int layer, const compute::NodeRows&) override {
    return run(StepKind::regroup, layer, c);
  }
  compute::Event experts(compute::Chunk& c, int layer, std::span<const compute::RowBlock>,
                         compute::ExpertPart) override {
    return run(StepKind::experts, layer, c);
  }
  compute::Event fold(compute::Chunk& c, int layer, const compute::NodeRows&) override {
    return run(StepKind::fold, layer, c);
  }
  compute::Event shared_expert(compute::Chunk& c, int layer) override {
    return run(StepKind::shared_expert, layer, c);
  }
  compute::Event merge(compute::Chunk& c, int layer) override {
    return run(StepKind::merge, layer, c);
  }
  compute::Event sample(compute::Chunk& c, std::span<const std::int32_t> rows,
                        std::span<const SamplingRequest>, SampledToken* out) override {
    std::fill_n(out, rows.size(), SampledToken{});
    return run(StepKind::head, -1, c);
  }
  compute::Event logits(compute::Chunk&, std::span<const std::int32_t>, float*) override {
    fail("no logits");
  }
  compute::Event logprobs(compute::Chunk&, std::span<const std::int32_t>,
                          std::span<const std::int32_t>, ScoredToken*) override {
    fail("no log-probabilities");
  }
  compute::Event save_x(const compute::Chunk&, float*) override { fail("no activations"); }
  compute::Event save_choices(const compute::Chunk&, std::int32_t*, float*, float*) override {
    fail("no choices");
  }
  compute::Event save_kv(int, std::span<const std::int32_t>, int, int, void*, void*) override {
    fail("no cache");
  }
  compute::Event load_kv(int, std::span<const std::int32_t>, int, int, const void*,
                         const void*) override {
    fail("no cache");
  }
  std::int64_t expert_bytes(int) const override { return 0; }
  void read_expert(int, int, std::span<std::byte>) override { fail("no experts"); }
  void write_expert(int, int, std::span<const std::byte>) override { fail("no experts"); }
  void place_experts(int, std::span<const std::int32_t>, const compute::ExpertPlaces&) override {
    fail("no experts");
  }
  void start() override {}
  bool done(compute::Event event) override { return stage_.clock.now >= at(event).end; }
  bool wait(compute::Event event, int) override {
    stage_.clock.advance();
    return done(event);
  }
  void finish(compute::Event event) override {
    while (!done(event)) stage_.clock.advance();
  }
  compute::Interval interval(compute::Event event) const override {
    return intervals_[static_cast<std::size_t>(event)];
  }
  Memory memory() const override { return {}; }

  bool idle() const { return intervals_.empty() || free_at_ <= stage_.clock.now; }

 private:
  const compute::Interval& at(compute::Event event) const {
    return intervals_[static_cast<std::size_t>(event)];
  }
  compute::Event run(StepKind kind, int layer, const compute::Chunk& chunk) {
    const auto number = static_cast<std::int16_t>(static_cast<const PlainChunk&>(chunk).number);
    const Step step{kind, static_cast<std::int16_t>(layer), number, {}};
    const double seconds = stage_.cost_of(step.name());
    const double begin = std::max(stage_.clock.now, free_at_);
    free_at_ = begin + seconds;
    stage_.clock.ends.push_back(free_at_);
    intervals_.push_back({begin, free_at_, 0, false});
    return static_cast<compute::Event>(intervals_.size() - 1);
  }

  Stage& stage_;
  int num_chunks_ = 0;
  double free_at_ = 0;
  std::vector<compute::Interval> intervals_;
};

/// Exchanges take what the table says.
class CostedMoves final : public ChunkMoves {
 public:
  CostedMoves(Stage& stage, CostedBackend& backend) : stage_(stage), backend_(backend) {}

  void begin(Route) override {}
  void post(const Step& step) override {
    const double end = stage_.clock.now + stage_.cost_of(step.name());
    ends_[step.name()] = end;
    stage_.clock.ends.push_back(end);
  }
  void poll_with(const Step&, comm::Poller&) override {}
  bool done(const Step& step) override {
    // The driver itself waits only for arithmetic. Where there is none, time passes here, once it
    // has nothing to launch any more.
    const bool nothing_new =
        stage_.clock.now == seen_at_ && stage_.launches.size() == seen_launches_;
    seen_at_ = stage_.clock.now;
    seen_launches_ = stage_.launches.size();
    same_ = nothing_new ? same_ + 1 : 0;
    constexpr int polls_without_news = 64;
    if (backend_.idle() && same_ > polls_without_news) stage_.clock.advance();
    return stage_.clock.now >= ends_.at(step.name());
  }
  compute::NodeRows node_rows() const override { return {}; }
  std::span<const compute::RowBlock> blocks(int) override { return {}; }
  std::span<const compute::RowBlock> same_blocks() const override { return {}; }
  std::span<const compute::RowBlock> shared_blocks() const override { return {}; }
  comm::Awaited awaited(const Step&) const override { return {}; }
  void placed(int) override {}
  std::size_t most_requests() const override { return 1; }

 private:
  Stage& stage_;
  CostedBackend& backend_;
  std::map<std::string, double> ends_;
  double seen_at_ = -1;
  std::size_t seen_launches_ = 0;
  int same_ = 0;
};

/// The same costs for the simulator.
class CostedPasses final : public PassModel {
 public:
  explicit CostedPasses(const Costs& costs) : costs_(costs) {}
  double seconds(int, int, const Step& step) const override { return costs_.at(step.name()); }
  double own_seconds(int, int, const Step& step) const override { return costs_.at(step.name()); }
  void messages(Share, int, int, const Step&, std::vector<Message>&) const override {}

 private:
  const Costs& costs_;
};

/// Different for every step, so that nothing ends at the same time as anything else.
Costs random_costs(const Schedule& schedule, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> seconds(1e-4, 1e-2);
  Costs costs;
  for (const Step& step : schedule.steps) costs[step.name()] = seconds(random);
  return costs;
}

struct Outcome {
  std::vector<Launch> launches;
  double end = 0;
};

Outcome driven(const ModelShape& shape, const Costs& costs, int chunks, bool overlap, Route route) {
  const comm::Communicator world = comm::Communicator::world();
  const JobLayout job({}, {0});
  const Groups groups(world, job, /*nodes=*/true);
  const Placement placement = even_placement(shape, one_node(1));
  Stage stage;
  stage.costs = costs;
  CostedBackend backend(stage);
  BatchOptions batch;
  batch.max_sequences = 4;
  batch.max_pass_tokens = 96;
  batch.min_chunk_tokens = 2;
  batch.max_chunks = chunks;
  batch.num_pages = 64;
  DriverOptions options;
  options.num_chunks = chunks;
  options.overlap = overlap;
  options.row_bytes = static_cast<std::size_t>(shape.hidden) * 2;
  options.flat = route == Route::flat;
  options.nodes = route == Route::nodes;
  options.max_head_rows = 8;
  options.max_chunk_tokens = 96;
  options.moves = [&](compute::Chunk&, int) -> std::unique_ptr<ChunkMoves> {
    return std::make_unique<CostedMoves>(stage, backend);
  };
  Timeline timeline(1, 0, 0);
  Driver driver(backend, groups, shape, placement, options, timeline);
  std::vector<io::Request> requests(4);
  for (io::Request& request : requests) {
    request.tokens.assign(24, 1);
    request.max_tokens = 2;
  }
  ListedRequests listed(requests);
  const auto needs = needs_of(listed, true, 4096, 1, batch);
  Batcher batcher(batch, room_for(needs, batch));
  RequestQueue queue(listed, {}, batch, "");
  std::vector<RankLoad> loads = {batcher.load()};
  for (RequestQueue::Grant& grant : queue.grant(loads)) batcher.take_up(std::move(grant.admitted));
  EXPECT_TRUE(batcher.next_pass(loads));
  EXPECT_EQ(batcher.num_chunks(), chunks);
  timeline.begin_pass(Phase::prefill, driver.schedule(chunks, {route}), 0, 0);
  driver.run_pass(batcher, {route});
  return {stage.launches, stage.clock.now};
}

Outcome simulated(const Schedule& schedule, const Costs& costs) {
  Machine machine;
  machine.cuda = false;
  const JobGroups groups(JobLayout({}, {0}));
  const Network network(machine, 1);
  const CostedPasses passes(costs);
  SimulatorSetup setup;
  setup.groups = &groups;
  setup.machine = &machine;
  setup.network = &network;
  setup.model = &passes;
  setup.schedules = {{&schedule}};
  setup.ranks = {0};
  Outcome outcome;
  setup.launched = [&](int, int, int step, double now) {
    outcome.launches.push_back({schedule.steps[static_cast<std::size_t>(step)].name(), now});
  };
  outcome.end = Simulator(setup).run().passes.front().end;
  return outcome;
}

TEST(DriverOrder, SimulatorLaunchesTheSameStepsAtTheSameTimes) {
  ModelShape shape = preset("moe-16l-tiny").shape;
  shape.num_layers = 4;
  shape.layer_is_dense = {true, false, false, false};
  shape.shared_intermediate = 64;
  for (const Route route : {Route::flat, Route::nodes}) {
    for (const bool overlap : {true, false}) {
      for (int chunks = 1; chunks <= 4; ++chunks) {
        for (unsigned seed = 0; seed < 8; ++seed) {
          StageSteps stage;
          stage.route = route;
          const Schedule schedule = overlap ? overlapped_schedule(shape, chunks, stage)
                                            : serial_schedule(shape, chunks, stage);
          const Costs costs = random_costs(schedule, seed);
          const Outcome driver = driven(shape, costs, chunks, overlap, route);
          const Outcome simulator = simulated(schedule, costs);
          ASSERT_EQ(driver.launches.size(), schedule.steps.size());
          ASSERT_EQ(simulator.launches.size(), schedule.steps.size());
          for (std::size_t i = 0; i < driver.launches.size(); ++i) {
            ASSERT_EQ(driver.launches[i].step, simulator.launches[i].step)
                << name_of(route) << (overlap ? " overlapped " : " serial ") << chunks
                << " chunks, seed " << seed << ", launch " << i;
            ASSERT_NEAR(driver.launches[i].time, simulator.launches[i].time, 1e-12);
          }
          EXPECT_NEAR(driver.end, simulator.end, 1e-12);
        }
      }
    }
  }
}

}  // namespace
}  // namespace atl
