#include "app/run/driver.hpp"

#include <sched.h>
#include <sys/prctl.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <functional>
#include <numeric>
#include <thread>
#include <utility>

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
/// An idle rank polls so many times before it sleeps. On a core of its own it just polls; on a
/// shared one it yields, a few times only: ranks that take turns to find nothing keep the one that
/// computes waiting, and Linux makes who yields wait a whole time slice of whoever else wants the
/// core.
constexpr int polls_on_shared_cores = 50;
constexpr int polls_on_own_cores = 1000;
constexpr int shortest_sleep_us = 20;
constexpr int longest_sleep_us = 200;
/// While arithmetic runs, polling only keeps messages moving; every wake-up takes time from it.
constexpr int shortest_busy_sleep_us = 50;
constexpr int longest_busy_sleep_us = 500;
/// A device's steps are short, and what follows one waits for this thread.
constexpr int device_sleep_us = 20;
}  // namespace

/// One chunk on its way: its buffers, and its rows between ranks.
struct Driver::ChunkState {
  ChunkState(compute::Backend& backend, const DriverOptions& options)
      : chunk(backend.make_chunk()) {
    const auto head_rows = static_cast<std::size_t>(
        options.mode == Mode::score ? options.max_chunk_tokens : options.max_head_rows);
    rows.reserve(head_rows);
    targets.reserve(head_rows);
    how.reserve(head_rows);
  }

  std::unique_ptr<compute::Chunk> chunk;
  std::unique_ptr<ChunkMoves> moves;
  ChunkBatch* batch = nullptr;
  std::vector<std::int32_t> rows, targets;  // of the head, with what follows
  std::vector<SamplingRequest> how;
};

Driver::Driver(compute::Backend& backend, const comm::Communicator& world, const ModelShape& shape,
               const Placement& placement, const DriverOptions& options, Timeline& timeline)
    : backend_(backend),
      world_(world),
      shape_(shape),
      placement_(placement),
      options_(options),
      timeline_(timeline) {
  // Linux adds 50 us to every sleep unless told otherwise, more than the sleeps of back_off().
  constexpr unsigned long timer_slack_ns = 1000;
  prctl(PR_SET_TIMERSLACK, timer_slack_ns, 0, 0, 0);
  make_schedules();
  traffic_.bytes_to.resize(static_cast<std::size_t>(world_.size()));
  traffic_.tokens_of_expert.resize(
      static_cast<std::size_t>(shape_.num_layers * std::max(1, shape_.num_experts)));
  const RowsSetup rows{&world_,
                       &placement_,
                       shape_.num_experts,
                       options_.row_bytes,
                       options_.transport,
                       backend_.device_memory(),
                       &traffic_};
  std::size_t most_requests = 0;
  for (int c = 0; c < options_.num_chunks; ++c) {
    ChunkState& state = *chunks_.emplace_back(std::make_unique<ChunkState>(backend_, options_));
    state.moves =
        options_.moves ? options_.moves(*state.chunk, c) : moves_over_mpi(rows, *state.chunk);
    most_requests += state.moves->most_requests();
  }
  const std::size_t most_steps = passes_.back().schedule().steps.size();
  running_compute_.reserve(max_queued(backend_) + 1);
  running_exchange_.reserve(most_steps);
  poller_.reserve(chunks_.size(), most_requests);
}

Driver::~Driver() = default;

void Driver::make_schedules() {
  std::uint64_t hash = 0;
  for (int n = 1; n <= options_.num_chunks; ++n) {
    Schedule built = options_.overlap ? overlapped_schedule(shape_, n) : serial_schedule(shape_, n);
    verify(built, shape_);
    hash = hash * 31 + built.hash();
    passes_.emplace_back(std::move(built));
  }
  const auto hashes = world_.allgather(hash);
  const auto other =
      std::find_if(hashes.begin(), hashes.end(), [&](std::uint64_t h) { return h != hashes[0]; });
  require(
      other == hashes.end(),
      "rank {} built another schedule than rank 0 (their options or programs differ); start all "
      "ranks with the same command",
      other - hashes.begin());
}

const Schedule& Driver::schedule(int num_chunks) const {
  return passes_[static_cast<std::size_t>(num_chunks - 1)].schedule();
}

Driver::ChunkState& Driver::chunk_of(const Step& step) {
  return *chunks_[static_cast<std::size_t>(step.chunk)];
}

void Driver::run_pass(Batcher& batch) {
  prepare(batch);
  while (!steps_->all_completed()) {
    launch();
    if (!running_exchange_.empty()) backend_.start();
    if (poll()) {
      idle_polls_ = 0;
      comm::watched::progress();
    } else {
      back_off();
    }
  }
}

void Driver::prepare(Batcher& batch) {
  batch_ = &batch;
  steps_ = &passes_[static_cast<std::size_t>(batch.num_chunks() - 1)];
  steps_->begin();
  for (int c = 0; c < batch.num_chunks(); ++c) {
    ChunkState& state = *chunks_[static_cast<std::size_t>(c)];
    state.batch = &batch.chunk(c);
    state.chunk->tokens = state.batch->tokens;
    state.chunk->segments = state.batch->segments;
  }
  idle_polls_ = 0;
}

void Driver::launch() {
  for (const auto index : steps_->take_messages()) {
    const Step& step = steps_->step(index);
    chunk_of(step).moves->post(step);
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
    return Running{index, event, save_x(step, chunk, event), 0};
  };
  switch (step.kind) {
    case StepKind::embed:
      return one(backend_.embed(chunk));
    case StepKind::attention:
      return one(backend_.attention(chunk, step.layer));
    case StepKind::mlp:
      return saved(backend_.mlp(chunk, step.layer));
    case StepKind::route:
      return one(backend_.route(chunk, step.layer));
    case StepKind::experts:
      return one(backend_.experts(chunk, step.layer, state.moves->blocks(step.layer)));
    case StepKind::merge:
      return saved(backend_.merge(chunk, step.layer));
    case StepKind::head:
      return one(launch_head(state));
    case StepKind::counts:
    case StepKind::dispatch:
    case StepKind::combine:
      break;
  }
  fail("internal: {} is not arithmetic", step.name());
}

/// After the last operation of a layer: copies x where it is wanted. Returns the last event.
compute::Event Driver::save_x(const Step& step, const compute::Chunk& chunk, compute::Event last) {
  if (!options_.save_x || chunk.tokens.empty()) return last;
  void* x = options_.save_x(step.chunk, step.layer, chunk.tokens.size());
  return x == nullptr ? last : backend_.save_x(chunk, x);
}

compute::Event Driver::launch_head(ChunkState& state) {
  ChunkBatch& batch = *state.batch;
  state.rows.clear();
  for (const HeadRow& head : batch.head) state.rows.push_back(head.row);
  if (options_.mode == Mode::score) {
    state.targets.clear();
    for (const HeadRow& head : batch.head) state.targets.push_back(head.target);
    batch.logprobs.resize(batch.head.size());
    return backend_.logprobs(*state.chunk, state.rows, state.targets, batch.logprobs.data());
  }
  state.how.clear();
  for (const HeadRow& head : batch.head) state.how.push_back(batch_->sampling_of(head));
  batch.sampled.resize(batch.head.size());
  return backend_.sample(*state.chunk, state.rows, state.how, batch.sampled.data());
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
    chunk_of(step).moves->poll_with(step, poller_);
  }
  poller_.test();
  bool progress = false;
  for (std::size_t i = 0; i < running_exchange_.size();) {
    const Running running = running_exchange_[i];
    const Step& step = steps_->step(running.step);
    if (!chunk_of(step).moves->done(step)) {
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

/// Gives the core away: to the arithmetic of this rank, or to ranks that share it. Sleeps grow
/// while nothing happens.
void Driver::back_off() {
  ++idle_polls_;
  say_where();
  if (!backend_.in_order() && !running_compute_.empty()) {
    // Whichever of several streams is first, it is seen soon; a rank with a core to itself spins.
    if (options_.shares_cores) {
      backend_.wait(running_compute_.front().event, device_sleep_us);
    } else if (idle_polls_ > polls_on_own_cores) {
      std::this_thread::sleep_for(std::chrono::microseconds(device_sleep_us));
    }
  } else if (!running_compute_.empty() && running_exchange_.empty()) {
    backend_.finish(running_compute_.front().event);  // no message can arrive meanwhile
  } else if (!running_compute_.empty()) {
    backend_.wait(running_compute_.front().event,
                  std::clamp(idle_polls_ * 10, shortest_busy_sleep_us, longest_busy_sleep_us));
  } else if (idle_polls_ < (options_.shares_cores ? polls_on_shared_cores : polls_on_own_cores)) {
    if (options_.shares_cores) sched_yield();
  } else {
    std::this_thread::sleep_for(std::chrono::microseconds(
        std::clamp(idle_polls_ / 8, shortest_sleep_us, longest_sleep_us)));
  }
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
  if (computing || !comm::watched::details_wanted() || idle_polls_ % 256 != 0) return;
  comm::watched::tell_details(awaited());
}

std::string Driver::awaited() {
  std::string text;
  for (const Running& exchange : running_exchange_) {
    const Step& step = steps_->step(exchange.step);
    const comm::Awaited peers = chunk_of(step).moves->awaited(step);
    if (peers.empty()) continue;
    text += fmt::format("{}{}", text.empty() ? "" : ", ", step.name());
    if (!peers.from.empty()) text += fmt::format(" from ranks {}", fmt::join(peers.from, " "));
    if (!peers.to.empty()) {
      text +=
          fmt::format("{} to ranks {}", peers.from.empty() ? "" : " and", fmt::join(peers.to, " "));
    }
  }
  return text;
}

}  // namespace atl
