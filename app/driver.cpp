#include "app/driver.hpp"

#include <sched.h>
#include <sys/prctl.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <functional>
#include <numeric>
#include <thread>
#include <utility>

#include "comm/deadline.hpp"
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

/// One chunk on its way: its buffers, its messages and the rows they carry.
struct Driver::ChunkState {
  ChunkState(compute::Backend& backend, const comm::Communicator& world,
             const DriverOptions& options, int experts_per_peer)
      : chunk(backend.make_chunk()),
        exchange(world, options.transport, options.row_bytes, experts_per_peer,
                 backend.device_memory() == nullptr ? first_message_bytes : 0,
                 backend.device_memory()),
        plan(world.size()) {
    const auto head_rows = static_cast<std::size_t>(
        options.mode == Mode::score ? options.max_chunk_tokens : options.max_head_rows);
    rows.reserve(head_rows);
    targets.reserve(head_rows);
    how.reserve(head_rows);
    blocks.reserve(static_cast<std::size_t>(world.size() * experts_per_peer));
  }

  std::unique_ptr<compute::Chunk> chunk;
  comm::Exchange exchange;
  comm::ExchangePlan plan;
  comm::PendingExchange pending;
  std::vector<compute::RowBlock> blocks;
  ChunkBatch* batch = nullptr;
  std::vector<std::int32_t> rows, targets;  // of the head, with what follows
  std::vector<SamplingRequest> how;
};

/// A schedule with the steps that wait for each step.
struct Driver::Compiled {
  explicit Compiled(Schedule s) : schedule(std::move(s)), successors(schedule.steps.size()) {
    for (std::size_t i = 0; i < schedule.steps.size(); ++i) {
      for (const auto dep : schedule.steps[i].deps) {
        successors[static_cast<std::size_t>(dep)].push_back(static_cast<std::int32_t>(i));
      }
    }
  }
  const Step& step(std::int32_t i) const { return schedule.steps[static_cast<std::size_t>(i)]; }

  Schedule schedule;
  std::vector<std::vector<std::int32_t>> successors;
};

Driver::Driver(compute::Backend& backend, const comm::Communicator& world, const ModelShape& shape,
               const Placement& placement, const DriverOptions& options, Timeline& timeline)
    : backend_(backend),
      world_(world),
      shape_(shape),
      placement_(placement),
      options_(options),
      timeline_(timeline),
      experts_per_peer_(std::max(1, placement.most_experts_on_a_rank())) {
  // Linux adds 50 us to every sleep unless told otherwise, more than the sleeps of back_off().
  constexpr unsigned long timer_slack_ns = 1000;
  prctl(PR_SET_TIMERSLACK, timer_slack_ns, 0, 0, 0);
  std::size_t most_steps = 0;
  std::uint64_t hash = 0;
  for (int n = 1; n <= options_.num_chunks; ++n) {
    compiled_.emplace_back(options_.overlap ? overlapped_schedule(shape_, n)
                                            : serial_schedule(shape_, n));
    const Schedule& built = compiled_.back().schedule;
    verify(built, shape_);
    hash = hash * 31 + built.hash();
    most_steps = std::max(most_steps, built.steps.size());
  }
  const auto hashes = world_.allgather(hash);
  const auto other =
      std::find_if(hashes.begin(), hashes.end(), [&](std::uint64_t h) { return h != hashes[0]; });
  require(
      other == hashes.end(),
      "rank {} built another schedule than rank 0 (their options or programs differ); start all "
      "ranks with the same command",
      other - hashes.begin());
  for (int c = 0; c < options_.num_chunks; ++c) {
    chunks_.push_back(std::make_unique<ChunkState>(backend_, world_, options_, experts_per_peer_));
  }
  traffic_.bytes_to.resize(static_cast<std::size_t>(world_.size()));
  traffic_.tokens_of_expert.resize(
      static_cast<std::size_t>(shape_.num_layers * std::max(1, shape_.num_experts)));
  pending_.reserve(most_steps);
  ready_compute_.reserve(most_steps);
  ready_exchange_.reserve(most_steps);
  running_compute_.reserve(max_queued(backend_) + 1);
  running_exchange_.reserve(most_steps);
  poller_.reserve(chunks_.size(), chunks_.size() * chunks_.front()->exchange.most_requests());
}

Driver::~Driver() = default;

const Schedule& Driver::schedule(int num_chunks) const {
  return compiled_[static_cast<std::size_t>(num_chunks - 1)].schedule;
}

void Driver::run_step(Batcher& batch) {
  prepare(batch);
  while (completed_ < current_->schedule.steps.size()) {
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
  current_ = &compiled_[static_cast<std::size_t>(batch.num_chunks() - 1)];
  const auto& steps = current_->schedule.steps;
  pending_.assign(steps.size(), 0);
  for (std::size_t i = 0; i < steps.size(); ++i) {
    pending_[i] = static_cast<std::int32_t>(steps[i].deps.size());
    if (pending_[i] == 0) ready_compute_.push_back(static_cast<std::int32_t>(i));
  }
  std::make_heap(ready_compute_.begin(), ready_compute_.end(), std::greater<>());
  for (int c = 0; c < batch.num_chunks(); ++c) {
    ChunkState& state = *chunks_[static_cast<std::size_t>(c)];
    state.batch = &batch.chunk(c);
    state.chunk->tokens = state.batch->tokens;
    state.chunk->segments = state.batch->segments;
  }
  completed_ = 0;
  idle_polls_ = 0;
}

void Driver::launch() {
  for (const auto step : ready_exchange_) {
    post_exchange(step);
    running_exchange_.push_back({step, 0, 0, now_seconds()});
  }
  ready_exchange_.clear();
  const std::size_t most = max_queued(backend_);
  while (!ready_compute_.empty() && running_compute_.size() < most) {
    std::pop_heap(ready_compute_.begin(), ready_compute_.end(), std::greater<>());
    const auto step = ready_compute_.back();
    ready_compute_.pop_back();
    running_compute_.push_back(launch_compute(step));
    release(step, /*launched_only=*/true);
  }
}

/// Marks what waited for `step`. The queue keeps its order, so arithmetic may follow arithmetic as
/// soon as that is enqueued; exchanges wait until it is done.
void Driver::release(std::int32_t step, bool launched_only) {
  const bool is_compute = !is_exchange(current_->step(step).kind);
  for (const auto next : current_->successors[static_cast<std::size_t>(step)]) {
    const bool next_is_compute = !is_exchange(current_->step(next).kind);
    if (is_compute && (next_is_compute != launched_only)) continue;
    if (--pending_[static_cast<std::size_t>(next)] > 0) continue;
    if (next_is_compute) {
      ready_compute_.push_back(next);
      std::push_heap(ready_compute_.begin(), ready_compute_.end(), std::greater<>());
    } else {
      ready_exchange_.push_back(next);
    }
  }
}

Driver::Running Driver::launch_compute(std::int32_t index) {
  const Step& step = current_->step(index);
  ChunkState& state = *chunks_[static_cast<std::size_t>(step.chunk)];
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
      build_blocks(state);
      return one(backend_.experts(chunk, step.layer, state.blocks));
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

void Driver::post_exchange(std::int32_t index) {
  const Step& step = current_->step(index);
  ChunkState& state = *chunks_[static_cast<std::size_t>(step.chunk)];
  compute::Chunk& chunk = *state.chunk;
  if (step.kind == StepKind::counts) {
    const auto per_peer = static_cast<std::size_t>(experts_per_peer_);
    const auto to = state.exchange.counts_to();
    for (std::size_t rank = 0; rank < placement_.experts_of.size(); ++rank) {
      const auto& experts = placement_.experts_of[rank];
      for (std::size_t i = 0; i < experts.size(); ++i) {
        const auto expert = static_cast<std::size_t>(experts[i]);
        to[rank * per_peer + i] = chunk.expert_counts[expert];
        traffic_
            .tokens_of_expert[static_cast<std::size_t>(step.layer * shape_.num_experts) + expert] +=
            chunk.expert_counts[expert];
      }
    }
    state.exchange.start_counts(chunk.dispatch_send);
    return;
  }
  if (step.kind == StepKind::combine) state.plan.reverse();
  std::int64_t sent = 0;
  for (std::size_t peer = 0; peer < traffic_.bytes_to.size(); ++peer) {
    const auto bytes = static_cast<std::int64_t>(state.plan.send_counts[peer]) *
                       static_cast<std::int64_t>(options_.row_bytes);
    traffic_.bytes_to[peer] += bytes;
    sent += bytes;
  }
  traffic_.bytes_sent_at_once = std::max(traffic_.bytes_sent_at_once, sent);
  if (world_.size() == 1) return;
  if (step.kind == StepKind::dispatch) {
    state.pending =
        state.exchange.dispatch(std::move(state.plan), chunk.dispatch_send, chunk.dispatch_recv);
  } else {
    state.pending =
        state.exchange.start(std::move(state.plan), chunk.combine_send, chunk.combine_recv);
  }
}

/// Lets MPI make progress, and looks which exchanges it has completed.
void Driver::test_exchanges() {
  poller_.clear();
  for (const Running& running : running_exchange_) {
    const Step& step = current_->step(running.step);
    ChunkState& state = *chunks_[static_cast<std::size_t>(step.chunk)];
    if (step.kind == StepKind::counts) {
      state.exchange.poll_counts_with(poller_);
    } else {
      state.pending.poll_with(poller_);
    }
  }
  poller_.test();
}

bool Driver::exchange_done(std::int32_t index) {
  const Step& step = current_->step(index);
  ChunkState& state = *chunks_[static_cast<std::size_t>(step.chunk)];
  if (step.kind == StepKind::counts) {
    if (!state.exchange.found_counts_done()) return false;
    state.exchange.plan_rows(state.plan);
    const std::int64_t rows = state.plan.rows_received();
    if (backend_.device_memory() != nullptr && rows > state.chunk->receive_capacity) {
      ++traffic_.receive_growths;
    }
    state.chunk->reserve_receive(rows);
    return true;
  }
  if (world_.size() == 1) return true;
  if (!state.pending.found_done()) return false;
  state.plan = state.exchange.finish(std::move(state.pending));
  return true;
}

/// Lists the rows of each local expert, rank by rank, where they lie; own rows never moved.
void Driver::build_blocks(ChunkState& state) {
  const auto per_peer = static_cast<std::size_t>(experts_per_peer_);
  const auto own = static_cast<std::size_t>(world_.rank());
  const auto to = state.exchange.counts_to();
  const auto from = state.exchange.counts_from();
  compute::Chunk& chunk = *state.chunk;
  state.blocks.clear();
  const auto row = [this](const void* base, std::int64_t index) {
    return static_cast<const std::byte*>(base) +
           static_cast<std::size_t>(index) * options_.row_bytes;
  };
  const auto row_out = [&row](void* base, std::int64_t index) {
    return const_cast<std::byte*>(row(base, index));
  };
  const std::size_t num_local = placement_.experts_of[own].size();
  for (std::size_t expert = 0; expert < num_local; ++expert) {
    for (std::size_t peer = 0; peer < placement_.experts_of.size(); ++peer) {
      const auto counts = peer == own ? std::span<const std::int32_t>(to) : from;
      const auto* first = counts.data() + peer * per_peer;
      if (first[expert] == 0) continue;
      const std::int64_t before = std::accumulate(first, first + expert, std::int64_t{0});
      compute::RowBlock block;
      block.local_expert = static_cast<std::int32_t>(expert);
      block.num_rows = first[expert];
      if (peer == own) {
        const std::int64_t at = state.plan.send_offsets[peer] + before;
        block.in = row(chunk.dispatch_send, at);
        block.out = row_out(chunk.combine_recv, at);
      } else {
        const std::int64_t at = state.plan.recv_offsets[peer] + before;
        block.in = row(chunk.dispatch_recv, at);
        block.out = row_out(chunk.combine_send, at);
      }
      traffic_.rows_computed += block.num_rows;
      state.blocks.push_back(block);
    }
  }
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
    release(running.step, /*launched_only=*/false);
    ++completed_;
    progress = true;
  }
  test_exchanges();
  for (std::size_t i = 0; i < running_exchange_.size();) {
    const Running running = running_exchange_[i];
    if (!exchange_done(running.step)) {
      ++i;
      continue;
    }
    timeline_.exchanged(static_cast<std::size_t>(running.step), running.posted, now_seconds());
    running_exchange_.erase(running_exchange_.begin() + static_cast<std::ptrdiff_t>(i));
    release(running.step, /*launched_only=*/false);
    ++completed_;
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
  const Step& first = current_->step(running.front().step);
  comm::watched::at(name_of(first.kind).data(), first.layer, first.chunk,
                    computing ? Activity::stepping : Activity::waiting);
  if (computing || !comm::watched::details_wanted() || idle_polls_ % 256 != 0) return;
  std::string awaited;
  for (const Running& exchange : running_exchange_) {
    const Step& step = current_->step(exchange.step);
    const ChunkState& state = *chunks_[static_cast<std::size_t>(step.chunk)];
    const comm::Awaited peers =
        step.kind == StepKind::counts ? state.exchange.awaited_counts() : state.pending.awaited();
    if (peers.empty()) continue;
    awaited += fmt::format("{}{}", awaited.empty() ? "" : ", ", step.name());
    if (!peers.from.empty()) awaited += fmt::format(" from ranks {}", fmt::join(peers.from, " "));
    if (!peers.to.empty()) {
      awaited +=
          fmt::format("{} to ranks {}", peers.from.empty() ? "" : " and", fmt::join(peers.to, " "));
    }
  }
  comm::watched::tell_details(awaited);
}

}  // namespace atl
