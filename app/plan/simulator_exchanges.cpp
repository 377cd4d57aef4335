// Exchanges of the simulator: who sends what to whom, when messages begin, and when a member is
// done.

#include <algorithm>
#include <unordered_map>
#include <utility>

#include "app/plan/simulator.hpp"
#include "app/plan/simulator_state.hpp"

namespace atl {

namespace {
/// Messages up to this size take their latency and fill no link.
constexpr double small_bytes = 4096;
}  // namespace

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
  Exchange& exchange = *exchanges_[static_cast<std::size_t>(starting.exchange)];
  for (const std::int32_t number : starting.flows) {
    Exchange::Flow& flow = exchange.flows[static_cast<std::size_t>(number)];
    flows_.begin(now, flow.path, flow.bytes, std::int64_t{starting.exchange} << 32 | number);
    flow.begin = now;
    if (lost_per_byte(flow.path) == 0) continue;
    exchange.computed.resize(exchange.messages.size());
    for (const std::int32_t m : flow.messages) {
      const Message& message = exchange.messages[static_cast<std::size_t>(m)];
      exchange.computed[static_cast<std::size_t>(m)] = {
          at_place(exchange, message.from).computed_until(now),
          at_place(exchange, message.to).computed_until(now)};
    }
  }
}

Simulator::Rank& Simulator::at_place(const Exchange& exchange, int place) {
  const int rank = (*exchange.ranks)[static_cast<std::size_t>(place)];
  return *ranks_[static_cast<std::size_t>(index_of_rank_[static_cast<std::size_t>(rank)])];
}

double Simulator::lost_per_byte(const LinkPath& path) const {
  return (path.between_nodes ? s_.machine->between : s_.machine->inside).arithmetic_s_per_byte;
}

/// Messages took so much of a rank's arithmetic: what it computes ends later, and what is queued
/// behind; where it has nothing, what begins next.
void Simulator::delay(Rank& rank, double seconds, double now) {
  if (seconds <= 0) return;
  rank.owed_s += seconds;
  double before = 0;  // end of the one before in the queue
  for (Running& running : rank.computing) {
    if (running.end <= now) continue;
    const double length = running.end - running.begin + std::exchange(rank.owed_s, 0);
    running.begin = std::max(running.begin, before);
    running.end = rank.queue_end = before = running.begin + length;
    push(running.end + s_.machine->poll_s, Do::wake, rank.index);
  }
}

void Simulator::flow_ended(std::int64_t tag, double now) {
  Exchange& exchange = *exchanges_[static_cast<std::size_t>(tag >> 32)];
  const Exchange::Flow& flow = exchange.flows[static_cast<std::size_t>(tag & 0xffffffff)];
  const double lost = lost_per_byte(flow.path);
  for (const std::int32_t number : flow.messages) {
    const Message& message = exchange.messages[static_cast<std::size_t>(number)];
    if (lost > 0 && now > flow.begin) {
      const auto [sender, receiver] = exchange.computed[static_cast<std::size_t>(number)];
      const double share = lost * message.bytes / (now - flow.begin);
      Rank& from = at_place(exchange, message.from);
      Rank& to = at_place(exchange, message.to);
      delay(from, share * (from.computed_until(now) - sender), now);
      delay(to, share * (to.computed_until(now) - receiver), now);
    }
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

}  // namespace atl
