#include "app/run/driver.hpp"

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "app/run/agreed_schedules.hpp"
#include "app/run/head_exchange.hpp"
#include "comm/watchdog.hpp"
#include "compute/error.hpp"

namespace atl {

namespace {
/// Operations in the queue, with the one that runs: the next one is there when one ends, and
/// whatever becomes ready meanwhile still goes by the schedule's priority, not by the queue's
/// order. With four, a chunk whose rows came back waited behind three others, and its next exchange
/// with it.
constexpr std::size_t max_queued_in_order = 2;
/// A GPU's steps are short: with two, its streams would wait for the host.
constexpr std::size_t max_queued_on_streams = 4;
std::size_t max_queued(const compute::Backend& backend) {
  return backend.in_order() ? max_queued_in_order : max_queued_on_streams;
}
}  // namespace

/// One chunk on its way: its buffers, its rows between ranks, and its head.
struct Driver::ChunkState {
  ChunkState(compute::Backend& backend, const DriverOptions& options)
      : chunk(backend.make_chunk()),
        head(options.mode,
             static_cast<std::size_t>(options.mode == Mode::score ? options.max_chunk_tokens
                                                                  : options.max_head_rows)) {}

  void post(const Step& step) {
    if (step.kind == StepKind::tokens) return heads->post(*batch);
    moves->post(step);
  }
  void poll_with(const Step& step, comm::Poller& poller) {
    if (step.kind == StepKind::tokens) return heads->lane().poll_with(poller);
    moves->poll_with(step, poller);
  }
  bool done(const Step& step) {
    return step.kind == StepKind::tokens ? heads->lane().done() : moves->done(step);
  }
  comm::Awaited awaited(const Step& step) const {
    return step.kind == StepKind::tokens ? heads->awaited() : moves->awaited(step);
  }

  std::unique_ptr<compute::Chunk> chunk;
  std::unique_ptr<ChunkMoves> moves;
  HeadStep head;
  std::optional<HeadExchange> heads;  // where others have the sequences too
  ChunkBatch* batch = nullptr;
};

Driver::Driver(compute::Backend& backend, const Groups& groups, const ModelShape& shape,
               const Placement& placement, const DriverOptions& options, Timeline& timeline)
    : backend_(backend),
      shape_(shape),
      placement_(placement),
      options_(options),
      timeline_(timeline),
      traffic_(shape, placement, groups.job()),
      back_off_(backend, options.shares_cores) {
  std::size_t most_steps = 0;
  for (const Route route : {Route::flat, Route::nodes}) {
    if (!(route == Route::flat ? options_.flat : options_.nodes)) continue;
    StageSteps stage = options_.stage;
    stage.route = route;
    for (Schedule& schedule : agreed_schedules(groups.of(Share::stage), shape_, options_.num_chunks,
                                               options_.overlap, stage)) {
      most_steps = std::max(most_steps, schedule.steps.size());
      passes_[static_cast<std::size_t>(route)].emplace_back(std::move(schedule));
    }
  }
  const RowsSetup rows{&groups,
                       &shape_,
                       &options_.attention,
                       &placement_,
                       options_.row_bytes,
                       options_.across_row_bytes,
                       options_.flat,
                       options_.nodes,
                       options_.transport,
                       backend_.device_memory(),
                       &traffic_};
  std::size_t most_requests = 0;
  for (int c = 0; c < options_.num_chunks; ++c) {
    ChunkState& state = *chunks_.emplace_back(std::make_unique<ChunkState>(backend_, options_));
    state.moves =
        options_.moves ? options_.moves(*state.chunk, c) : moves_over_mpi(rows, *state.chunk);
    most_requests += state.moves->most_requests();
    if (options_.stage.sequences_shared) {
      state.heads.emplace(groups, options_.mode, options_.transport);
      most_requests += state.heads->lane().most_requests();
    }
  }
  running_compute_.reserve(max_queued(backend_) + 1);
  running_exchange_.reserve(most_steps);
  poller_.reserve(3 * chunks_.size(), most_requests);  // between nodes, inside, between stages
}

Driver::~Driver() = default;

const Schedule& Driver::schedule(int num_chunks, Route route) const {
  return const_cast<Driver*>(this)->steps_of(num_chunks, route).schedule();
}

ReadySteps& Driver::steps_of(int num_chunks, Route route) {
  auto& passes = passes_[static_cast<std::size_t>(route)];
  require(!passes.empty(), "internal: no pass was to take the route {}", name_of(route));
  return passes[static_cast<std::size_t>(num_chunks - 1)];
}

Driver::ChunkState& Driver::chunk_of(const Step& step) {
  return *chunks_[static_cast<std::size_t>(step.chunk)];
}

void Driver::run_pass(Batcher& batch, Route route) {
  prepare(batch, route);
  while (!steps_->all_completed()) {
    launch();
    if (!running_exchange_.empty()) backend_.start();
    if (poll()) {
      back_off_.progress();
      comm::watched::progress();
    } else {
      say_where();
      back_off_.idle(running_compute_.empty() ? nullptr : &running_compute_.front().event,
                     !running_exchange_.empty());
    }
  }
}

void Driver::prepare(Batcher& batch, Route route) {
  batch_ = &batch;
  steps_ = &steps_of(batch.num_chunks(), route);
  steps_->begin();
  for (int c = 0; c < batch.num_chunks(); ++c) {
    ChunkState& state = *chunks_[static_cast<std::size_t>(c)];
    state.batch = &batch.chunk(c);
    state.moves->begin(route);
    give_rows(*state.batch, *state.chunk);
  }
  back_off_.progress();
}

/// The chunk's rows are the owner's; x has those of this rank.
void Driver::give_rows(const ChunkBatch& batch, compute::Chunk& chunk) const {
  const compute::AttentionShare& share = options_.attention;
  chunk.all_rows = static_cast<std::int64_t>(batch.tokens.size());
  const RowRange own = rows_of_member(chunk.all_rows, share.place, share.members);
  chunk.first_own_row = own.first;
  chunk.tokens = std::span(batch.tokens)
                     .subspan(static_cast<std::size_t>(own.first), static_cast<std::size_t>(own.size()));
  chunk.segments = batch.segments;
}

void Driver::launch() {
  for (const auto index : steps_->take_messages()) {
    const Step& step = steps_->step(index);
    chunk_of(step).post(step);
    running_exchange_.push_back({index, 0, 0, now_seconds()});
  }
  for (;;) {
    const auto index = steps_->next_arithmetic(max_queued(backend_));
    if (index < 0) break;
    running_compute_.push_back(launch_compute(index));
  }
}

Driver::Running Driver::launch_compute(std::int32_t index) {
  const Step& step = steps_->step(index);
  ChunkState& state = chunk_of(step);
  compute::Chunk& chunk = *state.chunk;
  const auto one = [index](compute::Event event) { return Running{index, event, event, 0}; };
  const auto saved = [&](compute::Event event) {
    const compute::Event kept = save_choices(step, chunk, event);
    return Running{index, event, save_x(step, chunk, kept), 0};
  };
  switch (step.kind) {
    case StepKind::embed:
      return one(backend_.embed(chunk));
    case StepKind::attention:
      return one(backend_.attention(chunk, step.layer));
    case StepKind::norm:
      return one(backend_.attention(chunk, step.layer, compute::AttentionPart::norm));
    case StepKind::project:
      return one(backend_.attention(chunk, step.layer, compute::AttentionPart::project));
    case StepKind::attend:
      return one(backend_.attention(chunk, step.layer, compute::AttentionPart::attend));
    case StepKind::output:
      return one(backend_.attention(chunk, step.layer, compute::AttentionPart::output));
    case StepKind::add:
      return one(backend_.attention(chunk, step.layer, compute::AttentionPart::add));
    case StepKind::mlp:
      return saved(backend_.mlp(chunk, step.layer));
    case StepKind::route:
      if (options_.forced) chunk.forced = options_.forced(step.chunk, step.layer);
      return one(backend_.route(chunk, step.layer,
                                steps_->schedule().stage.route == Route::flat ? compute::RouteTo::experts
                                                                        : compute::RouteTo::nodes));
    case StepKind::regroup:
      return one(backend_.regroup(chunk, step.layer, state.moves->node_rows()));
    case StepKind::experts:
      return one(backend_.experts(chunk, step.layer, state.moves->blocks(step.layer)));
    case StepKind::fold:
      return one(backend_.fold(chunk, step.layer, state.moves->node_rows()));
    case StepKind::merge:
      return saved(backend_.merge(chunk, step.layer));
    case StepKind::head:
      return one(state.head.launch(backend_, chunk, *batch_, *state.batch));
    default:
      break;
  }
  fail("internal: {} is not arithmetic", step.name());
}

/// After the last operation of a layer: copies x where it is wanted. Returns the last event.
compute::Event Driver::save_x(const Step& step, const compute::Chunk& chunk, compute::Event last) {
  if (!options_.save_x || chunk.tokens.empty()) return last;
  float* x = options_.save_x(step.chunk, step.layer, chunk.tokens.size());
  return x == nullptr ? last : backend_.save_x(chunk, x);
}

/// With the layer's last operation, not with route: nothing waits for it there.
compute::Event Driver::save_choices(const Step& step, const compute::Chunk& chunk,
                                    compute::Event last) {
  if (!options_.save_choices || step.kind != StepKind::merge || chunk.tokens.empty()) return last;
  const auto place = options_.save_choices(step.chunk, step.layer, chunk.tokens.size());
  return place.experts == nullptr ? last
                                  : backend_.save_choices(chunk, place.experts, place.weights);
}

void Driver::record_intervals(const Running& running) {
  const auto step = static_cast<std::size_t>(running.step);
  if (backend_.in_order()) {
    timeline_.computed(
        step, {backend_.interval(running.first).begin, backend_.interval(running.event).end});
    return;
  }
  std::array<compute::Interval, 2 * compute::Backend::max_parts> parts;
  std::size_t count = backend_.intervals(running.first, parts);
  if (running.event != running.first) {
    count += backend_.intervals(running.event, std::span(parts).subspan(count));
  }
  timeline_.computed(step, std::span(parts).first(count));
}

bool Driver::poll() {
  const bool computed = poll_compute();
  return poll_exchanges() || computed;
}

bool Driver::poll_compute() {
  bool progress = false;
  for (std::size_t i = 0; i < running_compute_.size();) {
    const Running running = running_compute_[i];
    if (!backend_.done(running.event) || !backend_.done(running.first)) {
      if (backend_.in_order()) break;
      ++i;
      continue;
    }
    record_intervals(running);
    running_compute_.erase(running_compute_.begin() + static_cast<std::ptrdiff_t>(i));
    steps_->completed(running.step);
    progress = true;
  }
  return progress;
}

/// Lets MPI make progress, by one call for all exchanges, and looks which it has completed.
bool Driver::poll_exchanges() {
  poller_.clear();
  for (const Running& running : running_exchange_) {
    const Step& step = steps_->step(running.step);
    chunk_of(step).poll_with(step, poller_);
  }
  poller_.test();
  bool progress = false;
  for (std::size_t i = 0; i < running_exchange_.size();) {
    const Running running = running_exchange_[i];
    const Step& step = steps_->step(running.step);
    if (!chunk_of(step).done(step)) {
      ++i;
      continue;
    }
    timeline_.exchanged(static_cast<std::size_t>(running.step), running.posted, now_seconds());
    running_exchange_.erase(running_exchange_.begin() + static_cast<std::ptrdiff_t>(i));
    steps_->completed(running.step);
    progress = true;
  }
  return progress;
}

/// For the watchdog: what keeps this rank, and once that takes long, whom MPI still awaits.
void Driver::say_where() {
  using comm::Activity;
  const bool computing = !running_compute_.empty();
  if (!computing && running_exchange_.empty()) return;
  const auto& running = computing ? running_compute_ : running_exchange_;
  const Step& first = steps_->step(running.front().step);
  comm::watched::at(name_of(first.kind).data(), first.layer, first.chunk,
                    computing ? Activity::computing : Activity::waiting);
  if (computing || !comm::watched::details_wanted() || back_off_.idle_polls() % 256 != 0) return;
  comm::watched::tell_details(awaited());
}

std::string Driver::awaited() {
  std::string text;
  for (const Running& exchange : running_exchange_) {
    const Step& step = steps_->step(exchange.step);
    const comm::Awaited peers = chunk_of(step).awaited(step);
    if (peers.empty()) continue;
    text += fmt::format("{}{}{}", text.empty() ? "" : ", ", step.name(), peers.text());
  }
  return text;
}

}  // namespace atl
