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
  flights_.resize(static_cast<std::size_t>(options_.num_flights));
  order_.reserve(flights_.size());
  make_schedules(groups);
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
  for (int c = 0; c < std::max(options_.num_chunks, options_.num_flights); ++c) {
    ChunkState& state = *chunks_.emplace_back(std::make_unique<ChunkState>(backend_, options_));
    state.moves =
        options_.moves ? options_.moves(*state.chunk, c) : moves_over_mpi(rows, *state.chunk);
    most_requests += state.moves->most_requests();
    if (options_.stage.sequences_shared) {
      state.heads.emplace(groups, options_.mode, options_.transport);
      most_requests += state.heads->lane().most_requests();
    }
  }
  std::size_t most_steps = 0;
  for (const PassesOfForm& passes : passes_) {
    for (const ReadySteps& steps : passes.steps) {
      most_steps = std::max(most_steps, steps.schedule().steps.size());
    }
  }
  running_compute_.reserve(max_queued(backend_) + 1);
  running_exchange_.reserve(most_steps * flights_.size());
  poller_.reserve(3 * chunks_.size(), most_requests);  // between nodes, inside, between stages
}

/// Where an error ends a pass, its operations may still write to what the chunks hold.
Driver::~Driver() {
  backend_.settle();
}

void Driver::place(int layer, LayerPlacement placement) {
  placement_.change(layer, std::move(placement));
  for (const auto& chunk : chunks_) chunk->moves->placed(layer);
  const auto first =
      traffic_.rows_of_replica.begin() +
      static_cast<std::ptrdiff_t>(static_cast<std::size_t>(layer) * traffic_.most_places);
  std::fill_n(first, traffic_.most_places, 0);
}

std::vector<PassForm> Driver::forms() const {
  using compute::OutputCut;
  const bool either = options_.stage.output == OutputCut::either;
  std::vector<PassForm> forms;
  for (const Route route : {Route::flat, Route::nodes}) {
    if (!(route == Route::flat ? options_.flat : options_.nodes)) continue;
    if (either) forms.push_back({route, OutputCut::rows});
    forms.push_back({route, either ? OutputCut::columns : options_.stage.output});
  }
  return forms;
}

void Driver::make_schedules(const Groups& groups) {
  for (const PassForm& form : forms()) {
    StageSteps stage = options_.stage;
    stage.route = form.route;
    stage.output = form.output;
    auto& passes = passes_.emplace_back(PassesOfForm{form, {}}).steps;
    for (Schedule& schedule : agreed_schedules(groups.of(Share::stage), shape_, options_.num_chunks,
                                               options_.overlap, stage)) {
      passes.emplace_back(std::move(schedule));
    }
    for (int flight = 1; flight < options_.num_flights; ++flight) {
      Schedule schedule = passes.front().schedule();
      for (Step& step : schedule.steps) step.chunk = static_cast<std::int16_t>(flight);
      passes.emplace_back(std::move(schedule));
    }
  }
}

const Schedule& Driver::schedule(int num_chunks, const PassForm& form) const {
  return const_cast<Driver*>(this)->steps_of(num_chunks, form, 0).schedule();
}

ReadySteps& Driver::steps_of(int num_chunks, const PassForm& form, int flight) {
  const bool either = options_.stage.output == compute::OutputCut::either;
  const PassForm wanted{form.route, either ? form.output : options_.stage.output};
  const auto found = std::find_if(passes_.begin(), passes_.end(), [&](const PassesOfForm& passes) {
    return passes.form == wanted;
  });
  require(found != passes_.end(), "internal: no pass was to take the route {} by {}",
          name_of(wanted.route), name_of(wanted.output));
  require(num_chunks == 1 || options_.num_flights == 1,
          "internal: a pass of {} chunks beside others", num_chunks);
  return found->steps[static_cast<std::size_t>(num_chunks - 1 + flight)];
}

Driver::ChunkState& Driver::chunk_of(const Step& step) {
  return *chunks_[static_cast<std::size_t>(step.chunk)];
}

void Driver::start(int index, Batcher& batch, const PassForm& form) {
  Flight& flight = flights_[static_cast<std::size_t>(index)];
  flight.batch = &batch;
  flight.steps = &steps_of(batch.num_chunks(), form, index);
  flight.steps->begin();
  order_.push_back(index);
  for (int c = 0; c < batch.num_chunks(); ++c) {
    ChunkState& state = *chunks_[static_cast<std::size_t>(first_slot(index) + c)];
    state.batch = &batch.chunk(c);
    state.moves->begin(form.route);
    give_rows(*state.batch, flight.steps->schedule().stage.output, *state.chunk);
  }
  back_off_.progress();
}

void Driver::land(int index) {
  Flight& flight = flights_[static_cast<std::size_t>(index)];
  while (!flight.steps->all_completed()) {
    if (go_on()) continue;
    require_under_way(*flight.steps);
    say_where();
    rest(!running_exchange_.empty());
  }
  std::erase(order_, index);
}

/// Where nothing is under way after all that may begin has begun, nothing ever will be.
void Driver::require_under_way(const ReadySteps& steps) const {
  if (!running_compute_.empty() || !running_exchange_.empty()) return;
  const auto first = steps.first_waiting();
  fail("internal: steps of this pass wait for one another{}",
       first < 0 ? "" : fmt::format(", {} for one", steps.step(first).name()));
}

void Driver::meanwhile() {
  if (!go_on()) rest(/*messages=*/true);
}

/// Takes up what may be done; true: something was completed.
bool Driver::go_on() {
  launch();
  if (!running_exchange_.empty()) backend_.start();
  if (!poll()) return false;
  back_off_.progress();
  comm::watched::progress();
  return true;
}

void Driver::rest(bool messages) {
  back_off_.idle(running_compute_.empty() ? nullptr : &running_compute_.front().event, messages);
}

/// The chunk's rows are the owner's; x has those of this rank.
void Driver::give_rows(const ChunkBatch& batch, compute::OutputCut output,
                       compute::Chunk& chunk) const {
  const compute::AttentionShare& share = options_.attention;
  chunk.all_rows = static_cast<std::int64_t>(batch.tokens.size());
  const RowRange own = rows_of_member(chunk.all_rows, share.place, share.members);
  chunk.first_own_row = own.first;
  chunk.tokens =
      std::span(batch.tokens)
          .subspan(static_cast<std::size_t>(own.first), static_cast<std::size_t>(own.size()));
  chunk.segments = batch.segments;
  if (share.shared()) chunk.output = output;
}

/// The oldest flight's steps go first: it is the one that others wait for. All ranks keep this
/// order, so that the oldest one always goes on, whatever the others wait for.
void Driver::launch() {
  for (const int flight : order_) launch_messages(flight);
  int beside = options_.flights_at_once;
  for (const int flight : order_) {
    launch_arithmetic(flight);
    const ReadySteps& steps = *flights_[static_cast<std::size_t>(flight)].steps;
    if (steps.arithmetic_left() && --beside == 0) break;
  }
}

void Driver::launch_messages(int flight) {
  ReadySteps& steps = *flights_[static_cast<std::size_t>(flight)].steps;
  for (const auto index : steps.take_messages()) {
    const Step& step = steps.step(index);
    chunk_of(step).post(step);
    running_exchange_.push_back({flight, index, 0, 0, now_seconds()});
  }
}

void Driver::launch_arithmetic(int flight) {
  ReadySteps& steps = *flights_[static_cast<std::size_t>(flight)].steps;
  while (running_compute_.size() < max_queued(backend_)) {
    const auto index = steps.next_arithmetic(max_queued(backend_));
    if (index < 0) break;
    running_compute_.push_back(launch_compute(flight, index));
  }
}

namespace {

/// Which part of attention such a step is; nothing where it is none.
std::optional<compute::AttentionPart> attention_part_of(StepKind kind) {
  switch (kind) {
    case StepKind::attention:
      return compute::AttentionPart::all;
    case StepKind::norm:
      return compute::AttentionPart::norm;
    case StepKind::project:
      return compute::AttentionPart::project;
    case StepKind::attend:
      return compute::AttentionPart::attend;
    case StepKind::output:
      return compute::AttentionPart::output;
    case StepKind::add:
      return compute::AttentionPart::add;
    default:
      return std::nullopt;
  }
}

}  // namespace

Driver::Running Driver::launch_compute(int flight, std::int32_t index) {
  const Flight& pass = flights_[static_cast<std::size_t>(flight)];
  const Step& step = pass.steps->step(index);
  ChunkState& state = chunk_of(step);
  compute::Chunk& chunk = *state.chunk;
  const auto one = [=](compute::Event event) { return Running{flight, index, event, event, 0}; };
  const auto saved = [&](compute::Event event) {
    const compute::Event kept = save_choices(step, chunk, event);
    return Running{flight, index, event, save_x(step, chunk, kept), 0};
  };
  if (const auto part = attention_part_of(step.kind)) {
    return one(backend_.attention(chunk, step.layer, *part));
  }
  switch (step.kind) {
    case StepKind::embed:
      return one(backend_.embed(chunk));
    case StepKind::mlp:
      return saved(backend_.mlp(chunk, step.layer));
    case StepKind::route:
      if (options_.forced) chunk.forced = options_.forced(step.chunk, step.layer);
      if (options_.offsets) chunk.offsets = options_.offsets(step.chunk, step.layer);
      return one(backend_.route(chunk, step.layer,
                                pass.steps->schedule().stage.route == Route::flat
                                    ? compute::RouteTo::experts
                                    : compute::RouteTo::nodes));
    case StepKind::shared_expert:
      return one(backend_.shared_expert(chunk, step.layer));
    case StepKind::regroup:
      return one(backend_.regroup(chunk, step.layer, state.moves->node_rows()));
    case StepKind::experts:
      return one(backend_.experts(chunk, step.layer, state.moves->blocks(step.layer)));
    case StepKind::collect:
      return one(backend_.experts(chunk, step.layer, state.moves->same_blocks(),
                                  compute::ExpertPart::collect));
    case StepKind::up:
      return one(backend_.experts(chunk, step.layer, state.moves->shared_blocks(),
                                  compute::ExpertPart::up));
    case StepKind::down:
      return one(backend_.experts(chunk, step.layer, state.moves->shared_blocks(),
                                  compute::ExpertPart::down));
    case StepKind::write:
      return one(backend_.experts(chunk, step.layer, state.moves->same_blocks(),
                                  compute::ExpertPart::write));
    case StepKind::fold:
      return one(backend_.fold(chunk, step.layer, state.moves->node_rows()));
    case StepKind::merge:
      return saved(backend_.merge(chunk, step.layer));
    case StepKind::head:
      return one(state.head.launch(backend_, chunk, *pass.batch, *state.batch));
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
  return place.experts == nullptr
             ? last
             : backend_.save_choices(chunk, place.experts, place.weights, place.given_up);
}

void Driver::record_intervals(const Running& running) {
  const Step& step = step_of(running);
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
    flights_[static_cast<std::size_t>(running.flight)].steps->completed(running.step);
    progress = true;
  }
  return progress;
}

/// Lets MPI make progress, by one call for all exchanges, and looks which it has completed.
bool Driver::poll_exchanges() {
  poller_.clear();
  for (const Running& running : running_exchange_) {
    const Step& step = step_of(running);
    chunk_of(step).poll_with(step, poller_);
  }
  poller_.test();
  bool progress = false;
  for (std::size_t i = 0; i < running_exchange_.size();) {
    const Running running = running_exchange_[i];
    const Step& step = step_of(running);
    if (!chunk_of(step).done(step)) {
      ++i;
      continue;
    }
    ReadySteps& steps = *flights_[static_cast<std::size_t>(running.flight)].steps;
    timeline_.exchanged(running.flight, steps.schedule(), static_cast<std::size_t>(running.step),
                        running.posted, now_seconds());
    running_exchange_.erase(running_exchange_.begin() + static_cast<std::ptrdiff_t>(i));
    flights_[static_cast<std::size_t>(running.flight)].steps->completed(running.step);
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
  const Step& first = step_of(running.front());
  comm::watched::at(name_of(first.kind).data(), first.layer, first.chunk,
                    computing ? Activity::computing : Activity::waiting);
  if (computing || !comm::watched::details_wanted() || back_off_.idle_polls() % 256 != 0) return;
  comm::watched::tell_details(awaited());
}

std::string Driver::awaited() {
  std::string text;
  for (const Running& exchange : running_exchange_) {
    const Step& step = step_of(exchange);
    const comm::Awaited peers = chunk_of(step).awaited(step);
    if (peers.empty()) continue;
    text += fmt::format("{}{}{}", text.empty() ? "" : ", ", step.name(), peers.text());
  }
  return text;
}

}  // namespace atl
