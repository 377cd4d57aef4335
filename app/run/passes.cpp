#include "app/run/passes.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <span>
#include <utility>

#include "app/plan/output_choice.hpp"
#include "app/run/route.hpp"
#include "app/run/run.hpp"
#include "app/run/stop.hpp"
#include "comm/allgather.hpp"
#include "comm/watchdog.hpp"

namespace atl {

namespace {

constexpr std::size_t max_trace_events = 200000;  // per rank, about 100 bytes each on file

}  // namespace

Passes::Passes(const PassesInput& input)
    : in_(input),
      speaks_(in_.groups.job().speaks(in_.world.rank())),
      kv_(in_.groups, in_.model.config.shape, in_.sizes.backend.part, in_.model.dtype, in_.backend),
      choices_(pass_facts(in_.groups, in_.options, in_.model.config.shape, in_.sizes.backend,
                          in_.ranks.cluster ? &*in_.ranks.cluster : nullptr,
                          in_.ranks.choice.cuda)),
      watch_(in_.groups, in_.ranks.topology, in_.model.config.shape.num_experts,
             in_.options.status),
      energy_(in_.ranks.topology.local_rank_of[static_cast<std::size_t>(in_.world.rank())] == 0) {
  const DriverOptions driver = driver_options();
  timeline_.emplace(in_.world.size(), comm::clock_offset(in_.world, in_.ranks.topology),
                    in_.options.trace.empty() ? 0 : max_trace_events, in_.sizes.batch.num_flights);
  Workload& work = in_.work;
  BatchOptions batch = in_.sizes.batch;
  batch.text = &work.text();
  pages_ = std::make_shared<PrefixPages>(
      batch,
      [this](std::int32_t from, std::int32_t to, std::int32_t rows) { kv_.copy(from, to, rows); });
  flights_.resize(static_cast<std::size_t>(in_.sizes.batch.num_flights));
  for (std::size_t f = 0; f < flights_.size(); ++f) {
    batchers_.push_back(std::make_unique<Batcher>(batch, in_.sizes.room,
                                                  work.checkpoints.restore_into(kv_), pages_));
  }
  driver_.emplace(in_.backend, in_.groups, in_.model.config.shape, in_.placement, driver,
                  *timeline_);
  loads_.resize(static_cast<std::size_t>(in_.world.size()));
  balancing_.emplace(in_.options, in_.groups, in_.backend, *driver_, watch_);
  if (in_.updates != nullptr) {
    weights_ = in_.updates->weights();
    for (const auto& batcher : batchers_) batcher->begin_weights(weights_);
  }
  share_resumed();
}

/// Which requests this run resumes: all ranks write what is kept of those that wait into the next
/// checkpoint.
void Passes::share_resumed() {
  std::string text;
  if (root()) {
    for (const std::int32_t request : in_.work.queue().resumed()) {
      text.append(reinterpret_cast<const char*>(&request), sizeof(request));
    }
  }
  text = in_.world.broadcast(text, 0);
  resumed_.resize(text.size() / sizeof(resumed_[0]));
  if (!text.empty()) std::memcpy(resumed_.data(), text.data(), text.size());
}

/// Where several passes are under way, each in turn is landed, agreed on anew and started: those of
/// the other flights go on meanwhile.
void Passes::run() {
  comm::watched::stage("the steps", in_.options.deadline);
  progress_.emplace(root() ? in_.options.progress : ProgressStyle::none);
  start_ = now_seconds();
  const int num_flights = in_.sizes.batch.num_flights;
  // Turns in a row in which no rank had anything to do. Of several flights each is asked twice: how
  // many sequences the others have, from which its share follows, is known from their last turn.
  int idle = 0;
  const int enough = num_flights == 1 ? 1 : 2 * num_flights;
  for (std::int64_t turn = 0; idle < enough; ++turn) {
    const int flight = static_cast<int>(turn % num_flights);
    comm::watched::begin_pass(turn);
    land(flight);
    if (agree_on_pass(flight)) {
      idle = 0;
      Batcher& batch = *batchers_[index(flight)];
      if (in_.replay != nullptr) in_.replay->prepare(batch, first_slot(flight));
      if (gate_) gate_->prepare(batch, first_slot(flight));
      if (guessed_) guessed_->prepare(batch, first_slot(flight));
      driver_->start(flight, batch, flights_[index(flight)].form());
      flights_[index(flight)].under_way = true;
      if (num_flights == 1) land(flight);
    } else if (loads_[0].blocks.held_back == 0) {
      ++idle;
    }
    if (timeline_->full()) timeline_->flush(in_.groups);
    show_progress(now_seconds() - start_);
  }
  energy_.leave();
  balancing_->finish();
  comm::watched::end_pass();
  comm::watched::stage("the end", setup_deadlines * in_.options.deadline);
  in_.work.checkpoints.close();
  write_status("finished");
  timeline_->flush(in_.groups);
  progress_->finish();
}

void Passes::land(int flight) {
  Flight& pass = flights_[index(flight)];
  if (!pass.under_way) return;
  driver_->land(flight);
  pass.under_way = false;
  finish_pass(flight);
  pass.seconds = now_seconds() - pass.begin;
}

/// Sequences are as far as they have come, and nothing is under way.
void Passes::land_all() {
  for (int f = 0; f < in_.sizes.batch.num_flights; ++f) land(f);
}

/// On rank 0. How much there is to do is known when all requests have been read.
void Passes::show_progress(double seconds) {
  if (!root() || !in_.work.all_read() || !progress_->due(seconds)) return;
  const RunProgress now = progress_at(seconds);
  progress_->update(now.total, now.left, seconds, watch_.remarks());
}

/// On rank 0.
RunProgress Passes::progress_at(double seconds) const {
  const RequestQueue& queue = in_.work.queue();
  RunProgress now;
  now.seconds = seconds;
  now.requests = static_cast<std::int64_t>(in_.work.requests().size());
  now.finished = in_.work.results.num_finished();
  now.waiting = queue.num_waiting();
  for (const RankLoad& load : loads_) {
    now.saved += load.prompt_saved;
    now.proposed += load.proposed;
    now.accepted += load.accepted;
  }
  if (!in_.work.all_read()) return now;
  now.total = queue.total_work();
  now.left = queue.work();
  for (const RankLoad& load : loads_) now.left += load.remaining_work;
  return now;
}

/// Collective.
void Passes::write_status(std::string_view state) {
  if (in_.options.status.empty()) return;
  watch_.write_status(state, root() ? progress_at(now_seconds() - start_) : RunProgress{},
                      driver_->traffic());
}

void Passes::finish_pass(int flight) {
  Batcher& batch = *batchers_[index(flight)];
  if (dump_) dump_->write(batch, first_slot(flight));
  if (record_) {
    record_->share(batch, first_slot(flight), in_.groups);
    if (speaks_) record_->take(batch, first_slot(flight));
  }
  if (gate_) gate_->take(batch, first_slot(flight));
  const PassTokens tokens = batch.finish_pass(now_seconds() - start_);
  if (gate_) gate_->finish(batch.finished());
  if (guessed_) guessed_->take_back(batch.rejected(), batch, first_slot(flight), *driver_);
  timeline_->end_pass(speaks_ ? tokens : PassTokens{}, flight);
  if (record_) record_->finish(batch.finished());
  if (in_.replay != nullptr) in_.replay->finish(batch.finished());
  if (!speaks_) batch.finished().clear();  // told by another
  in_.work.results.take(batch.finished());
}

/// Passes of other flights go on meanwhile; a single one has landed, and ranks just wait.
void Passes::hear_loads(const RankLoad& mine) {
  if (flights_.size() == 1) return in_.world.allgather_into(mine, std::span(loads_));
  comm::Allgather telling(in_.world, mine, std::span(loads_));
  while (!telling.test()) driver_->meanwhile();
}

bool Passes::agree_on_pass(int flight) {
  Flight& pass = flights_[index(flight)];
  Batcher& batch = *batchers_[index(flight)];
  double begin = now_seconds();
  hear_loads(load_of_rank(flight));
  double agreed = now_seconds();
  pass.sequences = 0;
  for (const RankLoad& load : loads_) pass.sequences += load.sequences;
  const auto finished = in_.work.results.collect(loads_);
  if (root()) in_.work.queue().finished(finished);
  watch_.add(loads_);
  if (loads_[0].status_due != 0) write_status("running");
  stop_if_asked();
  const auto due = static_cast<std::int32_t>(CheckpointPhase::due);
  if (loads_[0].checkpoint == due) {
    land_all();
    if (record_) record_->flush();
  }
  in_.work.checkpoints.advance(loads_, checkpoint_source(), pass.seconds);
  balance();
  if (advance_update()) begin = agreed = now_seconds();
  admit(flight);
  if (!batch.size_up(loads_)) return false;
  const Phase phase = batch.has_prompt_tokens() ? Phase::prefill : Phase::decode;
  const int tp = in_.groups.job().division().tp;
  const std::int64_t rows = (batch.most_rows() + tp - 1) / tp;
  pass.way = choices_.next({phase, rows}, loads_[0].cost);
  pass.output = output_of_pass(rows, pass.way.chunks, choices_.facts().balance_rows);
  if (in_.sizes.backend.part.attention.output == compute::OutputCut::either) {
    ++passes_by_output_[pass.output == compute::OutputCut::rows ? 0 : 1];
  }
  batch.cut(pass.way.chunks);
  timeline_->begin_pass(phase, driver_->schedule(pass.way.chunks, pass.form()), begin, agreed,
                        flight);
  energy_.enter(phase);
  pass.begin = begin;
  last_agreed_ = agreed;
  return true;
}

void Passes::balance() {
  if (gate_) {
    gate_->advance(loads_);
    if (root()) in_.work.queue().hold_after(gate_->last_open_line());
  }
  balancing_->advance(loads_, [this] { land_all(); });
}

bool Passes::advance_update() {
  const UpdateMode mode = in_.options.update;
  if (in_.updates == nullptr || next_update_move(loads_, mode) == UpdateMove::none) return false;
  land_all();  // no operation may be under way
  const std::string before = in_.updates->weights();
  comm::watched::stage("an update of the weights", setup_deadlines * in_.options.deadline);
  balancing_->before_update();
  in_.updates->advance(loads_, mode, balancing_->part(in_.sizes.backend.part));
  comm::watched::stage("the steps", in_.options.deadline);
  const std::string& now = in_.updates->weights();
  if (now == before) return true;
  balancing_->weights_changed();
  for (const auto& batcher : batchers_) batcher->begin_weights(now);
  weights_ = mode == UpdateMode::in_flight ? fmt::format("{},{}", weights_, now) : now;
  in_.work.checkpoints.set_weights(weights_);
  return true;
}

/// Of the pass that ended, as this rank saw it.
PassCost Passes::cost_of_pass() const {
  PassCost cost;
  if (last_agreed_ == 0) return cost;
  const Traffic& traffic = driver_->traffic();
  const JobLayout& job = in_.groups.job();
  const int own_node = job.node_of(in_.world.rank());
  if (in_.sizes.batch.num_flights == 1) {  // else others had their part in that time
    cost.seconds = now_seconds() - last_agreed_;
    cost.compute_seconds = timeline_->last_compute_seconds();
  }
  for (std::size_t rank = 0; rank < traffic.flat_rows_to.size(); ++rank) {
    if (job.node_of(static_cast<int>(rank)) != own_node) {
      cost.flat_rows += traffic.flat_rows_to[rank];
    }
    cost.routed_tokens += traffic.flat_rows_to[rank];
  }
  cost.routed_tokens /= std::max(1, in_.model.config.shape.top_k);
  for (std::size_t node = 0; node < traffic.node_rows_to.size(); ++node) {
    if (static_cast<int>(node) == own_node) continue;
    cost.node_rows += traffic.node_rows_to[node];
    cost.node_returns += traffic.node_returns_to[node];
  }
  return cost;
}

/// All ranks see from the loads whether rank 0 has a request that fits somewhere; where none does,
/// as in most passes, nothing more is said. Reading is waited for only where no rank has anything
/// else to do.
bool Passes::any_to_admit() const {
  const std::int64_t pages = loads_[0].next_pages;
  if (!admits_new(loads_) && loads_[0].resumed_waiting == 0) return false;
  if (pages == unread_pages) {
    return std::all_of(loads_.begin(), loads_.end(),
                       [](const RankLoad& load) { return load.remaining_work == 0; });
  }
  return pages > 0 && rank_for({.pages = pages}, loads_) >= 0;
}

void Passes::admit(int flight) {
  if (!any_to_admit()) return;
  std::vector<std::string> messages(loads_.size());
  if (root()) {
    in_.work.queue().wait_for_next();
    for (const RequestQueue::Grant& grant : in_.work.queue().grant(loads_, most_grants(flight))) {
      ++flights_[index(flight)].sequences;
      for (const int rank : in_.groups.job().of(Share::sequences).group_with(grant.rank)) {
        append_to(messages[static_cast<std::size_t>(rank)], grant.admitted);
      }
    }
    for (std::size_t rank = 0; rank < loads_.size(); ++rank) {
      loads_[rank].admitted_bytes = static_cast<std::int64_t>(messages[rank].size());
    }
  }
  in_.world.broadcast(std::as_writable_bytes(std::span(loads_)), 0);
  if (first_admitted_at_ == 0) first_admitted_at_ = now_seconds();
  const RankLoad& mine = loads_[static_cast<std::size_t>(in_.world.rank())];
  const std::string message = in_.world.scatter_sized(
      std::move(messages), static_cast<std::uint64_t>(mine.admitted_bytes), 0);
  for (Admitted& admitted : admitted_from(message)) {
    batchers_[index(flight)]->take_up(std::move(admitted));
  }
}

CheckpointSource Passes::checkpoint_source() {
  CheckpointSource source;
  source.batchers = batchers_;
  if (root()) source.queue = &in_.work.queue();
  source.resumed_waiting =
      std::span(resumed_).last(static_cast<std::size_t>(loads_[0].resumed_waiting));
  source.kv = &kv_;
  source.page_tokens = in_.sizes.batch.page_tokens;
  source.traffic = &driver_->traffic();
  source.placement = &driver_->placement();
  source.shape = &in_.model.config.shape;
  source.dtype = in_.model.dtype;
  return source;
}

RankLoad Passes::load_of_rank(int flight) {
  RankLoad load;
  if (gate_) gate_->take_up(*batchers_[index(flight)]);
  batchers_[index(flight)]->take_shared();
  batchers_[index(flight)]->look_ahead();
  if (speaks_) {
    load = batchers_[index(flight)]->load();
    load.prompt_saved = pages_->counts().rows_saved;
    load.remaining_work = 0;
    for (const auto& batcher : batchers_) {
      load.remaining_work += batcher->load().remaining_work;
      load.proposed += batcher->speculation().proposed;
      load.accepted += batcher->speculation().accepted;
    }
  }
  load.stop_signal = stop_signal();
  load.checkpoint = in_.work.checkpoints.phase();
  if (in_.updates != nullptr) {
    load.update = static_cast<std::int32_t>(in_.updates->phase(now_seconds()));
  }
  load.cost = cost_of_pass();
  load.work = watch_.work_since(driver_->traffic(), timeline_->expert_seconds());
  balancing_->tell(load);
  if (gate_) load.blocks = gate_->load(speaks_, batchers_);
  load.result_bytes = in_.work.results.waiting_bytes();
  if (root()) {
    in_.work.take_ready();
    load.next_pages = most_grants(flight) == 0 ? 0 : in_.work.queue().next_pages();
    if (load.next_pages == 0 && !in_.work.all_read()) load.next_pages = unread_pages;
    load.resumed_waiting = in_.work.queue().num_resumed();
    load.line_begun = in_.work.queue().line_begun() ? 1 : 0;
    load.status_due = watch_.due(now_seconds() - start_) ? 1 : 0;
    if (gate_) {
      const RequestQueue& queue = in_.work.queue();
      gate_->add_totals(load.blocks, in_.work.requests(), in_.work.all_read(), queue.oldest_line());
      load.blocks.held_back = queue.held_back() ? 1 : 0;
    }
  }
  return load;
}

/// Requests that a flight may take up now, of all ranks together: so many that flights have equal
/// numbers of them. On rank 0.
std::int64_t Passes::most_grants(int flight) const {
  const auto num_flights = static_cast<std::int64_t>(batchers_.size());
  if (num_flights == 1) return std::numeric_limits<std::int64_t>::max();
  std::int64_t under_way = in_.work.queue().num_waiting();
  for (const Flight& each : flights_) under_way += each.sequences;
  const std::int64_t share = (under_way + num_flights - 1) / num_flights;
  return std::max<std::int64_t>(0, share - flights_[index(flight)].sequences);
}

/// Between two passes, where all ranks see the same signals.
void Passes::stop_if_asked() {
  const auto asked = std::find_if(loads_.begin(), loads_.end(),
                                  [](const RankLoad& load) { return load.stop_signal != 0; });
  if (asked == loads_.end()) return;
  land_all();
  balancing_->finish();
  if (record_) record_->flush();
  const std::string checkpoint = in_.work.checkpoints.write_now(checkpoint_source());
  write_status("stopped");
  std::string message;
  if (root()) {
    ResultStore& results = in_.work.results;
    results.sync();
    message = fmt::format(
        "stopped by {} (sent to rank {}); {} of {} requests{} are finished and kept{}{}; run again "
        "with --resume to go on",
        name_of_signal(asked->stop_signal), asked - loads_.begin(), results.num_finished(),
        in_.work.requests().size(), in_.work.all_read() ? "" : " read so far",
        checkpoint.empty() ? "" : ", ", checkpoint);
  }
  throw comm::AgreedFailure(message, stopped_exit_code, root());
}

}  // namespace atl
