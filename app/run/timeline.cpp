#include "app/run/timeline.hpp"

#include <algorithm>

#include "app/run/groups.hpp"

namespace atl {

io::TraceLane lane_of(StepKind kind) {
  if (!is_exchange(kind)) return io::TraceLane::arithmetic;
  return info_of(kind).share == Share::rail ? io::TraceLane::across : io::TraceLane::exchange;
}

Timeline::Timeline(int num_ranks, double clock_offset, std::size_t max_trace_events,
                   int num_flights)
    : clock_offset_(clock_offset),
      max_trace_events_(max_trace_events),
      num_flights_(static_cast<std::size_t>(num_flights)),
      record_of_flight_(num_flights_, -1),
      waited_for_(static_cast<std::size_t>(num_ranks)) {
  passes_.reserve(passes_per_flush + 2 * num_flights_ + 1);
}

const Timeline::Slots& Timeline::slots_of(const Schedule& schedule) {
  for (const Slots& slots : slots_) {
    if (slots.schedule == &schedule) return slots;
  }
  Slots& slots = slots_.emplace_back();
  slots.schedule = &schedule;
  for (const Step& step : schedule.steps) {
    const bool exchange = is_exchange(step.kind);
    slots.of_step.push_back(exchange ? static_cast<std::int32_t>(slots.count++) : -1);
  }
  // Room for every step of the schedule until the next flush, so that recording does not allocate.
  const std::size_t passes = passes_per_flush + 2 * num_flights_ + 1;
  intervals_.reserve(passes * schedule.steps.size() * parts_per_step_);
  exchanges_.reserve(passes * slots.count);
  return slots;
}

void Timeline::begin_pass(Phase phase, const Schedule& schedule, double begin, double agreed,
                          int flight) {
  const Slots& slots = slots_of(schedule);
  if (num_flights_ > 1 && !passes_.empty()) passes_.back().end = begin;
  PassRecord record;
  record.phase = phase;
  record.begin = begin;
  record.agreed = agreed;
  record.first_interval = intervals_.size();
  record.first_exchange = exchanges_.size();
  record.num_exchanges = slots.count;
  exchanges_.resize(exchanges_.size() + slots.count);
  record_of_flight_[static_cast<std::size_t>(flight)] = std::ssize(passes_);
  passes_.push_back(record);
}

void Timeline::computed(const Step& step, std::span<const compute::Interval> parts) {
  parts_per_step_ = std::max(parts_per_step_, parts.size());
  const bool of_experts =
      step.kind == StepKind::experts || step.kind == StepKind::up || step.kind == StepKind::down;
  for (const compute::Interval& part : parts) {
    if (!part.only_copies) intervals_.push_back(part);
    if (!part.only_copies && of_experts) expert_seconds_ += part.end - part.begin;
    add_trace(step, part.begin, part.end, part.stream);
  }
}

void Timeline::exchanged(int flight, const Schedule& schedule, std::size_t step, double posted,
                         double done) {
  const auto slot = static_cast<std::size_t>(slots_of(schedule).of_step[step]);
  const Step& exchange = schedule.steps[step];
  exchanges_[pass_of(flight).first_exchange + slot] = {
      posted, done, share_of(exchange.kind, schedule.stage.route),
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

void Timeline::end_pass(const PassTokens& tokens, int flight) {
  PassRecord& record = pass_of(flight);
  const double now = now_seconds();
  if (num_flights_ == 1 || &record == &passes_.back()) record.end = now;
  record.ended = true;
  record.tokens = tokens;
  last_compute_ = 0;
  for (std::size_t i = record.first_interval; i < intervals_.size(); ++i) {
    last_compute_ += intervals_[i].end - intervals_[i].begin;
  }
}

std::size_t Timeline::num_ended() const {
  std::size_t ended = 0;
  while (ended < passes_.size() && passes_[ended].ended) ++ended;
  return ended;
}

void Timeline::flush(const Groups& groups) {
  const std::size_t ended = num_ended();
  const Range exchanges{first_exchange_of(accounted_), first_exchange_of(ended)};
  last_posts_.resize(exchanges_.size());
  for (const Share share :
       {Share::exchange, Share::node, Share::rail, Share::owner, Share::holder, Share::sequences}) {
    hear_last_posts(groups, share, exchanges);
  }
  wait_for_stages(groups, exchanges);
  for (std::size_t pass = accounted_; pass < ended; ++pass) account(pass);
  accounted_ = std::min(ended, num_flights_ - 1);
  forget(ended - accounted_);
}

/// What has been added up.
void Timeline::forget(std::size_t num_passes) {
  if (num_passes == passes_.size()) {
    passes_.clear();
    intervals_.clear();
    exchanges_.clear();
    last_posts_.clear();
  } else {
    const PassRecord first = passes_[num_passes];
    const auto erase_first = [](auto& list, std::size_t count) {
      list.erase(list.begin(), list.begin() + static_cast<std::ptrdiff_t>(count));
    };
    erase_first(intervals_, first.first_interval);
    erase_first(exchanges_, first.first_exchange);
    erase_first(last_posts_, std::min(last_posts_.size(), first.first_exchange));
    erase_first(passes_, num_passes);
    for (PassRecord& pass : passes_) {
      pass.first_interval -= first.first_interval;
      pass.first_exchange -= first.first_exchange;
    }
  }
  for (std::ptrdiff_t& record : record_of_flight_)
    record -= static_cast<std::ptrdiff_t>(num_passes);
}

/// All ranks of a group have run the same passes by the same routes, so they list the same
/// exchanges.
void Timeline::hear_last_posts(const Groups& groups, Share share, const Range& exchanges) {
  shared_.clear();
  posts_.clear();
  for (std::size_t i = exchanges.first; i < exchanges.end; ++i) {
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
void Timeline::wait_for_stages(const Groups& groups, const Range& exchanges) {
  const std::vector<int> pipe = groups.world_ranks(Share::pipe);
  const int stage = groups.of(Share::pipe).rank();
  for (std::size_t i = exchanges.first; i < exchanges.end; ++i) {
    if (exchanges_[i].share != Share::pipe) continue;
    last_posts_[i] = exchanges_[i].receives ? exchanges_[i].done : exchanges_[i].posted;
    if (!exchanges_[i].receives) continue;
    const int before = pipe[static_cast<std::size_t>(stage - 1)];
    waited_for_[static_cast<std::size_t>(before)] += exchanges_[i].done - exchanges_[i].posted;
  }
}

/// The time from a pass's begin to its end; other passes that were under way meanwhile have their
/// part in it.
void Timeline::account(std::size_t index) {
  const PassRecord& pass = passes_[index];
  sweep_.begin(pass.begin, pass.end);
  const auto add = [&](double begin, double end, Busy busy) {
    if (num_flights_ > 1) end = std::min(end, pass.end);
    sweep_.add(begin, end, busy);
  };
  const std::size_t last = std::min(index + num_flights_, passes_.size());
  const std::size_t end_interval =
      last == passes_.size() ? intervals_.size() : passes_[last].first_interval;
  for (std::size_t i = pass.first_interval; i < end_interval; ++i) {
    add(intervals_[i].begin, intervals_[i].end, Busy::compute);
  }
  const std::size_t first = index - std::min(index, num_flights_ - 1);
  for (std::size_t p = first; p <= index; ++p) {
    for (std::size_t i = passes_[p].first_exchange;
         i < passes_[p].first_exchange + passes_[p].num_exchanges; ++i) {
      add(last_posts_[i], exchanges_[i].done, Busy::exchange);
      add(exchanges_[i].posted, last_posts_[i], Busy::waiting);
    }
  }
  // Agreeing on a batch waits for the slowest rank.
  add(pass.begin, pass.agreed, Busy::waiting);

  PhaseTimes& sum = times_[static_cast<std::size_t>(pass.phase)];
  sum.add(sweep_.shares());
  sum.passes += 1;
  sum.processed_tokens += static_cast<double>(pass.tokens.processed);
  sum.prompt_tokens += static_cast<double>(pass.tokens.prompt);
  sum.new_tokens += static_cast<double>(pass.tokens.generated);
}

}  // namespace atl
