#include "app/plan/simulator.hpp"

#include <algorithm>
#include <limits>
#include <utility>

#include "compute/error.hpp"

namespace atl {

namespace {

constexpr double never = std::numeric_limits<double>::infinity();
/// Messages up to this size take their latency and fill no link.
constexpr double small_bytes = 4096;

bool moves_rows(StepKind kind) {
  switch (kind) {
    case StepKind::dispatch:
    case StepKind::combine:
    case StepKind::across_dispatch:
    case StepKind::across_combine:
      return true;
    default:
      return false;
  }
}

}  // namespace

struct Simulator::Rank {
  int rank = 0;   // in the job
  int index = 0;  // among those that run
  int stage = 0;
  double host_free = 0, queue_end = 0;
  bool agreeing = false;
  double came = 0;  // to the agreement
  std::int32_t turn = 0;
  struct Pass {
    std::int32_t pass = 0;
    ReadySteps* steps = nullptr;
  };
  std::vector<Pass> under_way;  // the oldest first
  // One for each flight and schedule.
  std::vector<std::pair<std::pair<int, const Schedule*>, std::unique_ptr<ReadySteps>>> steps;
  std::vector<Running> computing, exchanging;
  TimeSweep sweep;

  ReadySteps& steps_of(int flight, const Schedule* schedule) {
    for (auto& [key, ready] : steps) {
      if (key == std::pair(flight, schedule)) return *ready;
    }
    steps.emplace_back(std::pair(flight, schedule), std::make_unique<ReadySteps>(*schedule));
    return *steps.back().second;
  }
  ReadySteps& steps_of(std::int32_t pass) {
    for (const Pass& p : under_way) {
      if (p.pass == pass) return *p.steps;
    }
    fail("internal: rank {} is not in pass {}", rank, pass);
  }
};

struct Simulator::Exchange {
  struct Flow {
    LinkPath path;
    double bytes = 0;
    std::int32_t missing = 0;  // messages that cannot begin yet
    std::vector<std::int32_t> messages;
  };
  Share share{};
  std::int32_t group = 0, pass = 0;
  StepKind kind{};
  Step step;  // alike for all members
  std::uint64_t key = 0;
  const std::vector<int>* ranks = nullptr;  // members, in the job
  std::vector<Message> messages;
  std::vector<std::int32_t> flow_of;  // [messages]; -1: too small for one
  std::vector<Flow> flows;
  std::vector<std::vector<std::int32_t>> touching;  // [members], messages
  std::vector<double> posted, ready, done;          // [members]; -1: not yet
  std::vector<std::int32_t> pending;                // [members], messages
  int members = 0, num_posted = 0, num_ended = 0;
  double last_post = 0, last_done = 0;
  int last_place = 0;
};

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
  if (rank.agreeing) return;
  if (now < rank.host_free) return push(rank.host_free, Do::wake, index);
  complete(rank, now);
  next_turn(rank, now);
  if (!rank.agreeing) launch(rank, now);
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
  for (const Rank::Pass& pass : rank.under_way) {
    while (rank.computing.size() < max_queued_) {
      const std::int32_t step = pass.steps->next_arithmetic(max_queued_);
      if (step < 0) break;
      if (s_.launched) s_.launched(rank.rank, pass.pass, step, rank.host_free);
      const double seconds = s_.model->seconds(rank.rank, pass.pass, pass.steps->step(step));
      Running running{pass.pass, step, 0, 0, -1, 0};
      running.begin = std::max(rank.host_free + s_.machine->launch_s, rank.queue_end);
      running.end = rank.queue_end = running.begin + seconds;
      rank.computing.push_back(running);
      push(running.end + s_.machine->poll_s, Do::wake, rank.index);
    }
  }
}

std::int32_t Simulator::exchange_of(const Rank& rank, std::int32_t pass, const Step& step,
                                    int& place) {
  const StageSteps& stage =
      s_.schedules[static_cast<std::size_t>(rank.stage)][static_cast<std::size_t>(pass)]->stage;
  const Share share = share_of(step.kind, stage.route);
  const int group = s_.groups->group_of(share, rank.rank);
  place = s_.groups->place_of(share, rank.rank);
  Step canonical = step;  // equal on all members
  canonical.deps.clear();
  if (share == Share::pipe) {
    const bool receives = step.kind == StepKind::receive;
    canonical.kind = StepKind::forward;
    canonical.layer = static_cast<std::int16_t>(receives ? rank.stage - 1 : rank.stage);
  }
  std::uint64_t key = static_cast<std::uint64_t>(share);
  key = key << 20 | static_cast<std::uint64_t>(group);
  key = key << 12 | static_cast<std::uint64_t>(pass);
  key = key << 6 | static_cast<std::uint64_t>(canonical.kind);
  key = key << 14 | static_cast<std::uint64_t>(canonical.layer + 1);
  key = key << 6 | static_cast<std::uint64_t>(canonical.chunk);
  const auto [found, added] = exchange_at_.try_emplace(key, 0);
  if (!added) return found->second;
  std::int32_t index = static_cast<std::int32_t>(exchanges_.size());
  if (free_exchanges_.empty()) {
    exchanges_.push_back(std::make_unique<Exchange>());
  } else {
    index = free_exchanges_.back();
    free_exchanges_.pop_back();
    *exchanges_[static_cast<std::size_t>(index)] = Exchange{};
  }
  found->second = index;
  Exchange& exchange = *exchanges_[static_cast<std::size_t>(index)];
  exchange.share = share;
  exchange.group = group;
  exchange.pass = pass;
  exchange.kind = step.kind;
  exchange.key = key;
  describe(index, canonical);
  return index;
}

void Simulator::describe(std::int32_t index, const Step& step) {
  Exchange& exchange = *exchanges_[static_cast<std::size_t>(index)];
  exchange.step = step;
  exchange.ranks = &s_.groups->members(exchange.share, exchange.group);
  const auto members = exchange.ranks->size();
  exchange.members = exchange.share == Share::pipe ? 2 : static_cast<int>(members);
  exchange.posted.assign(members, -1);
  exchange.ready.assign(members, 0);
  exchange.done.assign(members, -1);
  exchange.pending.assign(members, 0);
  exchange.touching.resize(members);
  s_.model->messages(exchange.share, exchange.group, exchange.pass, step, exchange.messages);
  const auto rank_at = [&](int place) {
    return (*exchange.ranks)[static_cast<std::size_t>(place)];
  };
  for (std::size_t m = 0; m < exchange.messages.size(); ++m) {
    const Message& message = exchange.messages[m];
    const auto from = static_cast<std::size_t>(message.from);
    const auto to = static_cast<std::size_t>(message.to);
    const auto number = static_cast<std::int32_t>(m);
    exchange.touching[from].push_back(number);
    exchange.touching[to].push_back(number);
    ++exchange.pending[from];
    ++exchange.pending[to];
    const auto a =
        static_cast<std::size_t>(index_of_rank_[static_cast<std::size_t>(rank_at(message.from))]);
    const auto b =
        static_cast<std::size_t>(index_of_rank_[static_cast<std::size_t>(rank_at(message.to))]);
    result_.bytes[a * ranks_.size() + b] += message.row_bytes;
    if (message.bytes <= small_bytes) {
      exchange.flow_of.push_back(-1);
      continue;
    }
    exchange.flow_of.push_back(static_cast<std::int32_t>(exchange.flows.size()));
    Exchange::Flow& flow = exchange.flows.emplace_back();
    flow.path = s_.network->path(rank_at(message.from), rank_at(message.to));
    flow.bytes = message.bytes;
    flow.missing = 1;
    flow.messages = {number};
  }
  if (s_.merge_senders) merge(exchange);
}

/// Rows that several ranks of a node send to one rank elsewhere, or it to them, become one flow.
void Simulator::merge(Exchange& exchange) {
  if (!moves_rows(exchange.kind)) return;
  const bool there =
      exchange.kind == StepKind::dispatch || exchange.kind == StepKind::across_dispatch;
  std::vector<Exchange::Flow> merged;
  std::unordered_map<std::int64_t, std::int32_t> at;
  for (const Exchange::Flow& flow : exchange.flows) {
    const std::int32_t number = flow.messages.front();
    const Message& message = exchange.messages[static_cast<std::size_t>(number)];
    const int from = (*exchange.ranks)[static_cast<std::size_t>(message.from)];
    const int to = (*exchange.ranks)[static_cast<std::size_t>(message.to)];
    const std::int64_t key = !flow.path.between_nodes ? -1 - number
                             : there ? std::int64_t{s_.network->node_of(from)} << 32 | to
                                     : std::int64_t{s_.network->node_of(to)} << 32 | from;
    const auto [found, added] = at.try_emplace(key, static_cast<std::int32_t>(merged.size()));
    if (added) {
      merged.push_back(flow);
      if (flow.path.between_nodes) merged.back().path = s_.network->merged_path(from, to, there);
    } else {
      Exchange::Flow& into = merged[static_cast<std::size_t>(found->second)];
      into.bytes += flow.bytes;
      into.missing += 1;
      into.messages.push_back(number);
    }
    exchange.flow_of[static_cast<std::size_t>(number)] = found->second;
  }
  exchange.flows = std::move(merged);
}

void Simulator::post(Rank& rank, std::int32_t pass, std::int32_t index, double now) {
  const Step& step = rank.steps_of(pass).step(index);
  Running running{pass, index, 0, 0, -1, 0};
  running.exchange = exchange_of(rank, pass, step, running.place);
  Exchange& exchange = *exchanges_[static_cast<std::size_t>(running.exchange)];
  const auto place = static_cast<std::size_t>(running.place);
  rank.host_free = std::max(rank.host_free, now) +
                   s_.machine->message_s * static_cast<double>(exchange.touching[place].size());
  running.begin = rank.host_free;
  if (s_.launched) s_.launched(rank.rank, pass, index, running.begin);
  rank.exchanging.push_back(running);
  exchange.posted[place] = running.begin;
  ++exchange.num_posted;
  if (running.begin >= exchange.last_post) {
    exchange.last_post = running.begin;
    exchange.last_place = running.place;
  }
  post_messages(running.exchange, running.place, running.begin);
  check_done(exchange, running.place, running.begin);
}

void Simulator::post_messages(std::int32_t index, int place, double now) {
  Exchange& exchange = *exchanges_[static_cast<std::size_t>(index)];
  std::int32_t starting[2] = {-1, -1};  // inside a node, between nodes
  for (const std::int32_t number : exchange.touching[static_cast<std::size_t>(place)]) {
    const Message& message = exchange.messages[static_cast<std::size_t>(number)];
    const auto to = static_cast<std::size_t>(message.to);
    const std::int32_t flow_number = exchange.flow_of[static_cast<std::size_t>(number)];
    if (flow_number < 0) {
      if (message.from != place) continue;
      const LinkPath path = s_.network->path(
          (*exchange.ranks)[static_cast<std::size_t>(message.from)], (*exchange.ranks)[to]);
      --exchange.pending[static_cast<std::size_t>(place)];
      --exchange.pending[to];
      exchange.ready[to] = std::max(exchange.ready[to], now + path.latency_s);
      check_done(exchange, message.to, now);
      continue;
    }
    const bool eager = message.bytes <= s_.machine->eager_bytes;
    const bool begins = eager ? message.from == place
                              : exchange.posted[static_cast<std::size_t>(message.from)] >= 0 &&
                                    exchange.posted[to] >= 0;
    if (!begins) continue;
    if (eager) --exchange.pending[static_cast<std::size_t>(message.from)];
    Exchange::Flow& flow = exchange.flows[static_cast<std::size_t>(flow_number)];
    if (--flow.missing > 0) continue;
    std::int32_t& slot = starting[flow.path.between_nodes ? 1 : 0];
    if (slot < 0) {
      if (free_starting_.empty()) {
        slot = static_cast<std::int32_t>(starting_.size());
        starting_.emplace_back();
      } else {
        slot = free_starting_.back();
        free_starting_.pop_back();
      }
      starting_[static_cast<std::size_t>(slot)].exchange = index;
      starting_[static_cast<std::size_t>(slot)].flows.clear();
      // A receiver that was asked first answers: one way more.
      push(now + flow.path.latency_s * (eager ? 1 : 2), Do::begin_flows, slot);
    }
    starting_[static_cast<std::size_t>(slot)].flows.push_back(flow_number);
  }
}

void Simulator::begin_flows(const Starting& starting, double now) {
  const Exchange& exchange = *exchanges_[static_cast<std::size_t>(starting.exchange)];
  for (const std::int32_t number : starting.flows) {
    const Exchange::Flow& flow = exchange.flows[static_cast<std::size_t>(number)];
    flows_.begin(now, flow.path, flow.bytes, std::int64_t{starting.exchange} << 32 | number);
  }
}

void Simulator::flow_ended(std::int64_t tag, double now) {
  Exchange& exchange = *exchanges_[static_cast<std::size_t>(tag >> 32)];
  for (const std::int32_t number :
       exchange.flows[static_cast<std::size_t>(tag & 0xffffffff)].messages) {
    const Message& message = exchange.messages[static_cast<std::size_t>(number)];
    for (const int place : {message.from, message.to}) {
      if (place == message.from && message.bytes <= s_.machine->eager_bytes) continue;
      const auto p = static_cast<std::size_t>(place);
      --exchange.pending[p];
      exchange.ready[p] = std::max(exchange.ready[p], now);
      check_done(exchange, place, now);
    }
  }
}

void Simulator::check_done(Exchange& exchange, int place, double now) {
  const auto p = static_cast<std::size_t>(place);
  if (exchange.pending[p] > 0 || exchange.posted[p] < 0 || exchange.done[p] >= 0) return;
  const int rank = (*exchange.ranks)[p];
  exchange.done[p] = std::max({now, exchange.posted[p], exchange.ready[p]}) +
                     s_.model->own_seconds(rank, exchange.pass, exchange.step);
  exchange.last_done = std::max(exchange.last_done, exchange.done[p]);
  push(exchange.done[p] + s_.machine->poll_s, Do::wake,
       index_of_rank_[static_cast<std::size_t>(rank)]);
}

/// Times go to their kind; see TimeShares. An exchange whose members have all seen its end is over.
void Simulator::account(Rank& rank, const Running& running) {
  if (s_.keep_steps) {
    result_.steps.push_back({rank.rank, running.pass, running.step, running.begin, running.end});
  }
  if (running.exchange < 0) return rank.sweep.add(running.begin, running.end, Busy::compute);
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
