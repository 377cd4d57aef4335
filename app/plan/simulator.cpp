#include "app/plan/simulator.hpp"

#include <algorithm>
#include <limits>
#include <utility>

#include "app/plan/simulator_state.hpp"
#include "compute/error.hpp"

namespace atl {

namespace {

constexpr double never = std::numeric_limits<double>::infinity();
}  // namespace

Simulator::Simulator(const SimulatorSetup& setup)
    : s_(setup),
      flows_(*setup.network, setup.grain),
      index_of_rank_(static_cast<std::size_t>(setup.groups->job().num_ranks()), -1),
      max_queued_(setup.machine->cuda ? max_queued_on_streams : max_queued_in_order) {
  for (const int rank : s_.ranks) {
    index_of_rank_[static_cast<std::size_t>(rank)] = static_cast<int>(ranks_.size());
    auto& added = *ranks_.emplace_back(std::make_unique<Rank>());
    added.rank = rank;
    added.index = static_cast<int>(ranks_.size()) - 1;
    added.stage = s_.groups->job().stage_of(rank);
    added.sweep.begin(0, never);
  }
  result_.passes.resize(static_cast<std::size_t>(s_.num_passes));
  result_.bytes.resize(ranks_.size() * ranks_.size());
  result_.waited_for.resize(ranks_.size());
}

Simulator::~Simulator() = default;

void Simulator::push(double time, Do what, std::int32_t index) {
  events_.push({time, order_++, what, index});
}

SimulationResult Simulator::run() {
  for (const auto& rank : ranks_) push(0, Do::wake, rank->index);
  while (true) {
    const double event = events_.empty() ? never : events_.top().time;
    const double flow = flows_.next();
    if (event == never && flow == never) break;
    ++result_.events;
    if (flow <= event) {
      ended_.clear();
      flows_.advance(flow, ended_);
      for (const std::int64_t tag : ended_) flow_ended(tag, flow);
      continue;
    }
    const Event next = events_.top();
    events_.pop();
    switch (next.what) {
      case Do::wake:
        wake(next.index, next.time);
        break;
      case Do::begin_flows:
        begin_flows(starting_[static_cast<std::size_t>(next.index)], next.time);
        free_starting_.push_back(next.index);
        break;
      case Do::start_pass:
        start_pass(next.time);
        break;
    }
  }
  require_ended();
  collect(result_);
  return std::move(result_);
}

/// Ranks that wait for each other would wait for ever.
void Simulator::require_ended() const {
  for (const auto& rank : ranks_) {
    for (const Rank::Pass& pass : rank->under_way) {
      if (pass.steps->all_completed()) continue;
      const auto& waits = rank->exchanging.empty() ? rank->computing : rank->exchanging;
      fail("the simulated rank {} never ends {}: a message that it waits for is never sent",
           rank->rank, waits.empty() ? "a step" : pass.steps->step(waits.front().step).name());
    }
  }
}

void Simulator::wake(int index, double now) {
  Rank& rank = *ranks_[static_cast<std::size_t>(index)];
  if (now < rank.host_free) return push(rank.host_free, Do::wake, index);
  complete(rank, now);
  if (!rank.agreeing) next_turn(rank, now);
  launch(rank, now);  // other flights go on while all agree
}

/// What the driver's poll finds: arithmetic first, in its order, then exchanges.
bool Simulator::complete(Rank& rank, double now) {
  const double poll = s_.machine->poll_s;
  bool any = false;
  const auto finish = [&](const Running& running) {
    rank.steps_of(running.pass).completed(running.step);
    account(rank, running);
    any = true;
  };
  std::size_t computed = 0;
  while (computed < rank.computing.size() && rank.computing[computed].end + poll <= now) {
    finish(rank.computing[computed++]);
  }
  rank.computing.erase(rank.computing.begin(),
                       rank.computing.begin() + static_cast<std::ptrdiff_t>(computed));
  for (std::size_t i = 0; i < rank.exchanging.size();) {
    Running running = rank.exchanging[i];
    const Exchange& exchange = *exchanges_[static_cast<std::size_t>(running.exchange)];
    running.end = exchange.done[static_cast<std::size_t>(running.place)];
    if (running.end < 0 || running.end + poll > now) {
      ++i;
      continue;
    }
    rank.exchanging.erase(rank.exchanging.begin() + static_cast<std::ptrdiff_t>(i));
    finish(running);
  }
  return any;
}

/// Lands the flight whose turn it is, and then waits for all ranks to agree on its next pass.
void Simulator::next_turn(Rank& rank, double now) {
  for (std::size_t i = 0; i < rank.under_way.size();) {
    if (!rank.under_way[i].steps->all_completed()) {
      ++i;
      continue;
    }
    double& end = result_.passes[static_cast<std::size_t>(rank.under_way[i].pass)].end;
    end = std::max(end, now);
    rank.under_way.erase(rank.under_way.begin() + static_cast<std::ptrdiff_t>(i));
  }
  if (rank.turn >= s_.num_passes) return;
  const std::int32_t before = rank.turn - s_.num_flights;
  for (const Rank::Pass& pass : rank.under_way) {
    if (pass.pass <= before) return;
  }
  rank.agreeing = true;
  rank.came = now;
  if (++at_turn_ == static_cast<int>(ranks_.size())) {
    at_turn_ = 0;
    push(now + s_.machine->agree_s, Do::start_pass, 0);
  }
}

void Simulator::start_pass(double now) {
  const std::int32_t pass = next_pass_++;
  result_.passes[static_cast<std::size_t>(pass)].begin = now;
  for (const auto& rank : ranks_) {
    rank->agreeing = false;
    rank->sweep.add(rank->came, now, Busy::waiting);
    ++rank->turn;
    const Schedule* schedule =
        s_.schedules[static_cast<std::size_t>(rank->stage)][static_cast<std::size_t>(pass)];
    ReadySteps& steps = rank->steps_of(pass % s_.num_flights, schedule);
    steps.begin();
    rank->under_way.push_back({pass, &steps});
    rank->host_free = std::max(rank->host_free, now);
    push(now, Do::wake, rank->index);
  }
}

/// As the driver does: messages of all passes first, then arithmetic, the oldest pass first.
void Simulator::launch(Rank& rank, double now) {
  rank.host_free = now;
  for (const Rank::Pass& pass : rank.under_way) {
    for (const std::int32_t step : pass.steps->take_messages()) post(rank, pass.pass, step, now);
  }
  int beside = s_.flights_at_once;
  for (const Rank::Pass& pass : rank.under_way) {
    while (rank.computing.size() < max_queued_) {
      const std::int32_t step = pass.steps->next_arithmetic(max_queued_);
      if (step < 0) break;
      if (s_.launched) s_.launched(rank.rank, pass.pass, step, rank.host_free);
      const double seconds = s_.model->seconds(rank.rank, pass.pass, pass.steps->step(step));
      Running running{pass.pass, step, 0, 0, -1, 0};
      running.begin = std::max(rank.host_free + s_.machine->launch_s, rank.queue_end);
      running.end = rank.queue_end = running.begin + seconds + std::exchange(rank.owed_s, 0);
      rank.computing.push_back(running);
      push(running.end + s_.machine->poll_s, Do::wake, rank.index);
    }
    if (pass.steps->arithmetic_left() && --beside == 0) break;
  }
}

/// Times go to their kind; see TimeShares. An exchange whose members have all seen its end is over.
void Simulator::account(Rank& rank, const Running& running) {
  if (s_.keep_steps) {
    result_.steps.push_back({rank.rank, running.pass, running.step, running.begin, running.end});
  }
  if (running.exchange < 0) {
    rank.computed_s += running.end - running.begin;
    return rank.sweep.add(running.begin, running.end, Busy::compute);
  }
  Exchange& exchange = *exchanges_[static_cast<std::size_t>(running.exchange)];
  double last = exchange.num_posted < exchange.members ? running.end : exchange.last_post;
  last = std::clamp(last, running.begin, running.end);
  if (exchange.share == Share::pipe) {
    const bool sends = rank.steps_of(running.pass).step(running.step).kind == StepKind::forward;
    last = sends ? running.begin : running.end;
  } else {
    const int late = (*exchange.ranks)[static_cast<std::size_t>(exchange.last_place)];
    result_.waited_for[static_cast<std::size_t>(index_of_rank_[static_cast<std::size_t>(late)])] +=
        last - running.begin;
  }
  rank.sweep.add(running.begin, last, Busy::waiting);
  rank.sweep.add(last, running.end, Busy::exchange);
  if (++exchange.num_ended < exchange.members) return;
  if (moves_rows(exchange.kind)) {
    result_.transfer_s.push_back(exchange.last_done - exchange.last_post);
  }
  exchange_at_.erase(exchange.key);
  free_exchanges_.push_back(running.exchange);
}

void Simulator::collect(SimulationResult& result) {
  double end = 0;
  for (const SimulatedPass& pass : result.passes) end = std::max(end, pass.end);
  for (const auto& rank : ranks_) {
    result.rank_shares.push_back(rank->sweep.shares_until(end));
    result.shares.add(result.rank_shares.back());
  }
  std::sort(result.transfer_s.begin(), result.transfer_s.end());
  result.link_bytes.assign(flows_.bytes_of_link().begin(), flows_.bytes_of_link().end());
  result.link_busy_s.assign(flows_.busy_of_link().begin(), flows_.busy_of_link().end());
  result.shared = flows_.times_shared();
}

}  // namespace atl
