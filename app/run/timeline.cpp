#include "app/run/timeline.hpp"

#include <algorithm>

#include "app/run/groups.hpp"

namespace atl {

double PhaseTimes::overlapped_share() const {
  const double shorter = std::min(compute, exchange);
  return shorter > 0 ? overlapped / shorter : 1.0;
}

io::TraceLane lane_of(StepKind kind) {
  if (!is_exchange(kind)) return io::TraceLane::arithmetic;
  return info_of(kind).share == Share::rail ? io::TraceLane::across : io::TraceLane::exchange;
}

Timeline::Timeline(int num_ranks, double clock_offset, std::size_t max_trace_events)
    : clock_offset_(clock_offset),
      max_trace_events_(max_trace_events),
      waited_for_(static_cast<std::size_t>(num_ranks)) {
  passes_.reserve(passes_per_flush);
}

void Timeline::begin_pass(Phase phase, const Schedule& schedule, double begin, double agreed) {
  if (schedule_ != &schedule) {
    schedule_ = &schedule;
    exchange_slot_.assign(schedule.steps.size(), -1);
    std::int32_t slot = 0;
    for (std::size_t i = 0; i < schedule.steps.size(); ++i) {
      if (is_exchange(schedule.steps[i].kind)) exchange_slot_[i] = slot++;
    }
    // Room for every step of the schedule until the next flush, so that recording does not
    // allocate.
    intervals_.reserve(passes_per_flush * schedule.steps.size() * parts_per_step_);
    exchanges_.reserve(passes_per_flush * static_cast<std::size_t>(slot));
  }
  const auto num_exchanges = static_cast<std::size_t>(std::count_if(
      exchange_slot_.begin(), exchange_slot_.end(), [](std::int32_t slot) { return slot >= 0; }));
  PassRecord record;
  record.phase = phase;
  record.begin = begin;
  record.agreed = agreed;
  record.first_interval = intervals_.size();
  record.first_exchange = exchanges_.size();
  record.num_exchanges = num_exchanges;
  exchanges_.resize(exchanges_.size() + num_exchanges);
  passes_.push_back(record);
}

void Timeline::computed(std::size_t step, std::span<const compute::Interval> parts) {
  parts_per_step_ = std::max(parts_per_step_, parts.size());
  for (const compute::Interval& part : parts) {
    if (!part.only_copies) intervals_.push_back(part);
    add_trace(schedule_->steps[step], part.begin, part.end, part.stream);
  }
}

void Timeline::exchanged(std::size_t step, double posted, double done) {
  const auto slot = static_cast<std::size_t>(exchange_slot_[step]);
  const Step& exchange = schedule_->steps[step];
  exchanges_[passes_.back().first_exchange + slot] = {
      posted, done, share_of(exchange.kind, schedule_->stage.route),
      exchange.kind == StepKind::receive};
  add_trace(exchange, posted, done);
}

void Timeline::add_trace(const Step& step, double begin, double end, int stream) {
  if (max_trace_events_ == 0) return;
  if (trace_.size() >= max_trace_events_) {
    ++dropped_;
    return;
  }
  if (trace_.capacity() == 0) trace_.reserve(max_trace_events_);
  io::TraceEvent event;
  event.kind = static_cast<std::uint8_t>(step.kind);
  event.layer = step.layer;
  event.chunk = step.chunk;
  event.stream = static_cast<std::uint8_t>(stream);
  event.begin = begin + clock_offset_;
  event.end = end + clock_offset_;
  trace_.push_back(event);
}

void Timeline::end_pass(const PassTokens& tokens) {
  PassRecord& record = passes_.back();
  record.end = now_seconds();
  record.num_intervals = intervals_.size() - record.first_interval;
  record.tokens = tokens;
  last_compute_ = 0;
  for (std::size_t i = record.first_interval; i < intervals_.size(); ++i) {
    last_compute_ += intervals_[i].end - intervals_[i].begin;
  }
}

void Timeline::flush(const Groups& groups) {
  last_posts_.resize(exchanges_.size());
  for (const Share share : {Share::exchange, Share::node, Share::rail, Share::owner, Share::sequences}) {
    hear_last_posts(groups, share);
  }
  wait_for_stages(groups);
  for (const PassRecord& pass : passes_) {
    account(pass, std::span(last_posts_).subspan(pass.first_exchange, pass.num_exchanges));
  }
  passes_.clear();
  intervals_.clear();
  exchanges_.clear();
}

/// All ranks of a group have run the same passes by the same routes, so they list the same
/// exchanges.
void Timeline::hear_last_posts(const Groups& groups, Share share) {
  shared_.clear();
  posts_.clear();
  for (std::size_t i = 0; i < exchanges_.size(); ++i) {
    if (exchanges_[i].share != share) continue;
    shared_.push_back(i);
    posts_.push_back(exchanges_[i].posted + clock_offset_);
  }
  if (posts_.empty()) return;
  lasts_.resize(posts_.size());
  last_ranks_.resize(posts_.size());
  groups.of(share).allreduce_max_where(posts_, lasts_, last_ranks_);
  const std::vector<int> ranks = groups.world_ranks(share);
  for (std::size_t s = 0; s < shared_.size(); ++s) {
    const Exchanged& exchange = exchanges_[shared_[s]];
    const double last = std::clamp(lasts_[s] - clock_offset_, exchange.posted, exchange.done);
    last_posts_[shared_[s]] = last;
    const int rank = ranks[static_cast<std::size_t>(last_ranks_[s])];
    waited_for_[static_cast<std::size_t>(rank)] += last - exchange.posted;
  }
}

/// A stage waits for the one before it: that is the pipeline's bubble. Rows themselves are on their
/// way for a short part of it, if links are not slow.
void Timeline::wait_for_stages(const Groups& groups) {
  const std::vector<int> pipe = groups.world_ranks(Share::pipe);
  const int stage = groups.of(Share::pipe).rank();
  for (std::size_t i = 0; i < exchanges_.size(); ++i) {
    if (exchanges_[i].share != Share::pipe) continue;
    last_posts_[i] = exchanges_[i].receives ? exchanges_[i].done : exchanges_[i].posted;
    if (!exchanges_[i].receives) continue;
    const int before = pipe[static_cast<std::size_t>(stage - 1)];
    waited_for_[static_cast<std::size_t>(before)] += exchanges_[i].done - exchanges_[i].posted;
  }
}

void Timeline::account(const PassRecord& pass, std::span<const double> last_posts) {
  edges_.clear();
  const auto add = [this](double begin, double end, int state) {
    if (end <= begin) return;
    edges_.push_back({begin, state, +1});
    edges_.push_back({end, state, -1});
  };
  for (std::size_t i = 0; i < pass.num_intervals; ++i) {
    const auto& interval = intervals_[pass.first_interval + i];
    add(interval.begin, interval.end, 0);
  }
  for (std::size_t i = 0; i < pass.num_exchanges; ++i) {
    const Exchanged& exchange = exchanges_[pass.first_exchange + i];
    add(last_posts[i], exchange.done, 1);
    add(exchange.posted, last_posts[i], 2);
  }
  add(pass.begin, pass.agreed, 2);  // agreeing on a batch waits for the slowest rank
  std::sort(edges_.begin(), edges_.end(),
            [](const Edge& a, const Edge& b) { return a.time < b.time; });

  PhaseTimes& sum = times_[static_cast<std::size_t>(pass.phase)];
  std::array<int, 3> active{};
  double at = pass.begin;
  const auto spend = [&](double until) {
    const double span = std::max(0.0, until - at);
    if (active[0] > 0) sum.compute += span;
    if (active[1] > 0) sum.exchange += span;
    if (active[0] > 0 && active[1] > 0) sum.overlapped += span;
    if (active[0] == 0) {
      (active[1] > 0   ? sum.communication
       : active[2] > 0 ? sum.synchronisation
                       : sum.overhead) += span;
    }
    at = std::max(at, until);
  };
  for (const Edge& edge : edges_) {
    spend(edge.time);
    active[static_cast<std::size_t>(edge.state)] += edge.change;
  }
  spend(pass.end);
  sum.wall += pass.end - pass.begin;
  sum.passes += 1;
  sum.processed_tokens += static_cast<double>(pass.tokens.processed);
  sum.prompt_tokens += static_cast<double>(pass.tokens.prompt);
  sum.new_tokens += static_cast<double>(pass.tokens.generated);
}

}  // namespace atl
