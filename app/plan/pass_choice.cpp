#include "app/plan/pass_choice.hpp"

#include <algorithm>
#include <utility>

#include "app/plan/chunking.hpp"

namespace atl {

namespace {

// A candidate is tried until two passes in a row agree. The first ones of a way also make
// connections, which takes longer than several short passes: these do not count before some time
// has gone by.
constexpr double agree_within = 1.3;
constexpr double least_trial_s = 0.05;
// Beside this, what else varies is short: one pass is enough, but for the first of its route.
constexpr double long_trial_s = 0.25;
constexpr std::int64_t most_trials = 8;
// Whose best of so many short passes is behind by more than passes differ is not tried further.
constexpr std::int64_t enough_to_lose = 3;
constexpr double about_as_good = 1.1;       // times the best measured: passes differ by so much
constexpr double worth_a_trial = 2;         // times the best estimate
constexpr double worth_another_trial = 2;   // times the best measured
constexpr double exchanges_of_a_layer = 3;  // counters, rows there, rows back
// Where links have not been measured: a message through shared memory.
constexpr PassLink assumed = {5e-6, 4e9};

double power(double base, int exponent) {
  double product = 1;
  for (int i = 0; i < exponent; ++i) product *= base;
  return product;
}

}  // namespace

// Sums, products and quotients alone: ranks must come to the same numbers to the last bit, and
// functions of the mathematical library may differ between CPUs.
PassChoices::PassChoices(PassFacts facts) : facts_(std::move(facts)) {
  for (PassLink* link : {&facts_.inside, &facts_.between}) {
    if (link->node_bytes_per_s <= 0) *link = assumed;
  }
  // Every expert as likely as any other, until passes have shown more.
  const double nodes = facts_.num_nodes;
  flat_rows_ = facts_.top_k * (1 - 1 / nodes);
  node_rows_ = (nodes - 1) * (1 - power(1 - 1 / nodes, facts_.top_k));
  node_returns_ = flat_rows_;
}

PassWay PassChoices::next(const PassSize& size, const PassCost& last) {
  learn(last);
  Bucket& bucket = bucket_of(size);
  Candidate& candidate = take(bucket);
  ++candidate.taken;
  last_bucket_ = &bucket;
  last_ = &candidate;
  last_size_ = size;
  last_chunks_ = fitted(candidate.way, size).chunks;
  return {candidate.way.route, last_chunks_};
}

/// Whether chunks have room for their tokens, and these are not too few.
bool PassChoices::fits(int chunks, const PassSize& size) const {
  const bool smallest = chunks == facts_.chunk_counts.front();
  return (smallest || size.rows >= std::int64_t{chunks} * facts_.min_chunk_tokens) &&
         (size.rows + chunks - 1) / chunks <= facts_.most_chunk_tokens;
}

/// The way for a pass of this size, which may be another than the one it was chosen for.
PassWay PassChoices::fitted(PassWay way, const PassSize& size) const {
  const std::vector<int>& counts = facts_.chunk_counts;
  if (counts.size() == 1) {  // as many as asked for, if there are rows for them
    const ChunkLimits limits{.min_chunk_tokens = facts_.min_chunk_tokens,
                             .max_chunks = counts.front()};
    way.chunks = chunk_count(size.rows, limits);
    return way;
  }
  if (fits(way.chunks, size)) return way;
  const int wanted = std::exchange(way.chunks, counts.back());  // the finest cut has most room
  for (const int count : counts) {
    if (!fits(count, size)) continue;
    if (way.chunks == counts.back() || count <= wanted) way.chunks = count;
  }
  return way;
}

void PassChoices::learn(const PassCost& last) {
  if (last.routed_tokens > 0) {
    const auto per_token = [&](std::int64_t rows) {
      return static_cast<double>(rows) / static_cast<double>(last.routed_tokens);
    };
    flat_rows_ = per_token(last.flat_rows);
    node_rows_ = per_token(last.node_rows);
    node_returns_ = per_token(last.node_returns);
  }
  if (last_ == nullptr || last.seconds <= 0) return;
  const double rows = static_cast<double>(std::max<std::int64_t>(1, last_size_.rows));
  const double per_row = last.seconds / rows;
  if (last_->passes == 0 || per_row < last_->best) last_->best = per_row;
  ++last_->passes;
  const double longer = std::max(per_row, last_->last_per_row);
  const double shorter = std::min(per_row, last_->last_per_row);
  last_->tried_s += last.seconds;
  const bool agree = shorter > 0 && longer < agree_within * shorter;
  const bool connected = passes_by_route_[static_cast<std::size_t>(last_->way.route)]++ > 0;
  last_->settled = last_->settled || (agree && last_->tried_s >= least_trial_s) ||
                   (connected && last.seconds >= long_trial_s) || last_->passes >= most_trials ||
                   (last_->passes >= enough_to_lose && is_behind(*last_));
  last_->last_per_row = per_row;
  computed_[static_cast<std::size_t>(last_size_.phase)] = {last.compute_seconds, rows,
                                                           last_chunks_};
}

/// Of those that passes of its size may take, another is faster.
bool PassChoices::is_behind(const Candidate& candidate) const {
  const auto& rivals = last_bucket_->candidates;
  return std::any_of(rivals.begin(), rivals.end(), [&](const Candidate& rival) {
    const bool known = rival.settled || rival.passes >= enough_to_lose;
    return known && about_as_good * rival.best < candidate.best;
  });
}

PassChoices::Bucket& PassChoices::bucket_of(const PassSize& size) {
  std::int64_t least = 1;
  while (2 * least <= size.rows) least *= 2;
  for (Bucket& bucket : buckets_) {
    if (bucket.phase != size.phase || bucket.least_rows != least) continue;
    if (bucket.guessed && measured(size.phase)) choose_candidates(bucket, size);
    return bucket;
  }
  // Room for all sizes there are, so that candidates stay where they are.
  if (buckets_.capacity() == 0) buckets_.reserve(128);
  Bucket& bucket = buckets_.emplace_back();
  bucket.phase = size.phase;
  bucket.least_rows = least;
  choose_candidates(bucket, size);
  return bucket;
}

std::vector<PassWay> PassChoices::ways_of(const PassSize& size) const {
  std::vector<PassWay> ways;
  for (const Route route : facts_.routes) {
    if (facts_.chunk_counts.size() == 1) {
      ways.push_back(fitted({route, facts_.chunk_counts.front()}, size));
      continue;
    }
    for (const int chunks : facts_.chunk_counts) {
      if (fits(chunks, size)) ways.push_back({route, chunks});
    }
    if (ways.empty() || ways.back().route != route) {
      ways.push_back({route, facts_.chunk_counts.back()});  // the finest cut has the most room
    }
  }
  return ways;
}

/// The best way of each route, and the next best of the better route.
void PassChoices::choose_candidates(Bucket& bucket, const PassSize& size) const {
  std::vector<Candidate> all;
  for (const PassWay& way : ways_of(size)) {
    Candidate& candidate = all.emplace_back();
    candidate.way = way;
    candidate.estimate = estimate(size, way);
  }
  std::stable_sort(all.begin(), all.end(),
                   [](const Candidate& a, const Candidate& b) { return a.estimate < b.estimate; });
  std::vector<Candidate> kept;
  for (const Candidate& candidate : bucket.candidates) {
    if (candidate.passes > 0) kept.push_back(candidate);  // what was tried is not forgotten
  }
  const auto is_kept = [&](const Candidate& candidate) {
    return std::any_of(kept.begin(), kept.end(),
                       [&](const Candidate& other) { return other.way == candidate.way; });
  };
  int same_route = 0;
  bool other_route = false;
  for (const Candidate& candidate : all) {
    if (candidate.estimate > worth_a_trial * all.front().estimate) break;
    const bool same = candidate.way.route == all.front().way.route;
    if (same ? same_route++ >= 2 : std::exchange(other_route, true)) continue;
    if (!is_kept(candidate)) kept.push_back(candidate);
  }
  bucket.candidates = std::move(kept);
  bucket.guessed = !measured(size.phase);
}

PassChoices::Candidate& PassChoices::take(Bucket& bucket) {
  ++bucket.passes;
  // A few passes of each in turn, so that the slow ones are known early.
  Candidate* open = nullptr;
  for (Candidate& candidate : bucket.candidates) {
    if (candidate.settled) continue;
    const auto turns = [](const Candidate& c) { return c.passes / enough_to_lose; };
    if (open == nullptr || turns(candidate) < turns(*open)) open = &candidate;
  }
  if (open != nullptr) return *open;
  if (Candidate* neighbour = untried_neighbour(bucket)) return *neighbour;
  std::stable_sort(bucket.candidates.begin(), bucket.candidates.end(),
                   [](const Candidate& a, const Candidate& b) { return a.best < b.best; });
  if (bucket.candidates.size() > 1 && bucket.passes >= bucket.next_trial) {
    bucket.next_trial = 2 * bucket.passes;
    Candidate& second = bucket.candidates[1];
    if (second.best < worth_another_trial * bucket.candidates[0].best) return second;
  }
  return bucket.candidates.front();
}

/// Where the best so far, or one that is about as good, is cut as finely or as coarsely as any that
/// was tried on its route, the next count may be better still.
PassChoices::Candidate* PassChoices::untried_neighbour(Bucket& bucket) const {
  double best = bucket.candidates.front().best;
  for (const Candidate& candidate : bucket.candidates) best = std::min(best, candidate.best);
  for (std::size_t c = 0; c < bucket.candidates.size(); ++c) {
    if (bucket.candidates[c].best > about_as_good * best) continue;
    const PassWay from = bucket.candidates[c].way;
    for (const int chunks : {from.chunks * 2, from.chunks / 2}) {
      if (is_worth_a_trial(bucket, {from.route, chunks}, from)) {
        Candidate candidate;
        candidate.way = {from.route, chunks};
        candidate.estimate = estimate({bucket.phase, bucket.least_rows}, candidate.way);
        return &bucket.candidates.emplace_back(candidate);
      }
    }
  }
  return nullptr;
}

bool PassChoices::is_worth_a_trial(const Bucket& bucket, const PassWay& way,
                                   const PassWay& beside) const {
  const PassSize size{bucket.phase, bucket.least_rows};
  const auto& counts = facts_.chunk_counts;
  if (std::find(counts.begin(), counts.end(), way.chunks) == counts.end()) return false;
  if (!fits(way.chunks, size)) return false;
  for (const Candidate& candidate : bucket.candidates) {
    if (candidate.way == way) return false;  // it was tried
  }
  return estimate(size, way) <= worth_a_trial * estimate(size, beside);
}

double PassChoices::estimate(const PassSize& size, const PassWay& way) const {
  const double compute = compute_seconds(size, way.chunks);
  const double messages = message_seconds(size, way);
  return std::max(compute, messages) + std::min(compute, messages) / way.chunks;
}

/// Of a pass; what chunks there are beyond the first cost beside bytes is in it.
double PassChoices::message_seconds(const PassSize& size, const PassWay& way) const {
  const auto node_tokens = static_cast<double>(size.rows) * facts_.ranks_of_node;
  const auto row = static_cast<double>(facts_.row_bytes);
  const double others = facts_.ranks_of_node - 1;
  const double stay_here = facts_.top_k - flat_rows_;  // choices inside the node
  const double hop = facts_.inside.latency_s;          // what a message costs who sends it
  double seconds = 0;
  double overhead = exchanges_of_a_layer * facts_.between.latency_s;
  const double inside_share = others / facts_.ranks_of_node;
  if (way.route == Route::flat) {
    seconds += 2 * node_tokens * flat_rows_ * row / facts_.between.node_bytes_per_s;
    seconds += 2 * node_tokens * stay_here * inside_share * row / facts_.inside.node_bytes_per_s;
    overhead += exchanges_of_a_layer * hop * (facts_.num_ranks - 1);
  } else {
    const auto with_tail = static_cast<double>(facts_.across_row_bytes);
    seconds += node_tokens * (node_rows_ * with_tail + node_returns_ * row) /
               facts_.between.node_bytes_per_s;
    // As many rows come into a node as leave it; each is copied once more at either end.
    const double inside = 2 * node_tokens * facts_.top_k * row;
    seconds += inside * (inside_share + 1) / facts_.inside.node_bytes_per_s;
    overhead +=
        exchanges_of_a_layer * (facts_.inside.latency_s + hop * (facts_.num_nodes - 1 + others));
  }
  return facts_.moe_layers * (seconds + overhead * way.chunks);
}

/// Of a pass, from the last one of its phase, or guessed before there was one.
double PassChoices::compute_seconds(const PassSize& size, int chunks) const {
  const Computed& last = computed_[static_cast<std::size_t>(size.phase)];
  const auto rows = static_cast<double>(std::max<std::int64_t>(1, size.rows));
  // Rows of one expert in a chunk of `count`: few of them and its weights' bytes decide.
  const auto rate = [&](double of_rows, int count) {
    const double expert_rows =
        of_rows * facts_.top_k * facts_.num_ranks / facts_.num_experts / count;
    return 1 + facts_.balance_rows / expert_rows;
  };
  if (last.seconds <= 0) return facts_.guessed_s_per_row * rows * rate(rows, chunks);
  return last.seconds * (rows * rate(rows, chunks)) / (last.rows * rate(last.rows, last.chunks));
}

std::vector<PassRecord> PassChoices::records() const {
  std::vector<PassRecord> all;
  for (const Bucket& bucket : buckets_) {
    for (const Candidate& candidate : bucket.candidates) {
      if (candidate.taken == 0) continue;
      all.push_back({bucket.phase, bucket.least_rows, candidate.way, candidate.estimate,
                     candidate.best, candidate.taken});
    }
  }
  return all;
}

}  // namespace atl
