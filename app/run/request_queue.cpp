#include "app/run/request_queue.hpp"

#include <algorithm>
#include <utility>

#include "app/plan/update_policy.hpp"
#include "app/run/request_needs.hpp"

namespace atl {

namespace {

// Of the requests that wait, so many are in memory as what admission decides by, and as themselves.
constexpr std::size_t most_known = 4096;
constexpr std::int64_t most_foreseen_tokens = std::int64_t{4} << 20;

}  // namespace

RequestQueue::RequestQueue(RequestList& requests, std::span<const KeptProgress> kept,
                           const BatchOptions& options, const std::string& sized_by, More more)
    : requests_(requests),
      kept_(kept),
      options_(options),
      sized_by_(sized_by),
      more_(std::move(more)),
      homes_(options.page_tokens) {
  take_new();
}

KeptProgress RequestQueue::kept_of(std::size_t request) const {
  return request < kept_.size() ? kept_[request] : KeptProgress();
}

WaitingRequest RequestQueue::waiting_of(std::size_t index) const {
  const RequestEntry& request = requests_[index];
  const KeptProgress kept = kept_of(index);
  return {.request = static_cast<std::int32_t>(index),
          .pages = pages_needed(request, options_),
          .prompt_tokens = std::max(0, request.prompt_tokens - kept.cached),
          .new_tokens = new_tokens_of(request, options_) - kept.generated,
          .resumed = kept.cached > 0};
}

bool RequestQueue::waits(std::size_t request) const {
  const KeptProgress kept = kept_of(request);
  return requests_[request].usable == 1 && !kept.finished && kept.cached == 0;
}

/// What was under way is among the first, all of which a resumed run has read before.
void RequestQueue::take_new() {
  std::vector<WaitingRequest> resumed;
  for (; seen_ < requests_.size(); ++seen_) {
    if (requests_[seen_].usable == 0) continue;
    if (kept_of(seen_).finished) {
      requests_.forget(seen_);
      continue;
    }
    const std::string error = beyond_cache(requests_[seen_], options_, sized_by_);
    if (!error.empty()) {
      requests_.refuse(seen_, error);
      continue;
    }
    const WaitingRequest waiting = waiting_of(seen_);
    total_work_ += waiting.work();
    if (waiting.resumed) {
      resumed.push_back(waiting);
    } else {
      ++num_later_;
      later_work_ += waiting.work();
    }
  }
  admission_.add(resumed);
  fill();
}

void RequestQueue::fill() {
  std::vector<WaitingRequest> next;
  const std::size_t known = admission_.waiting().size();
  for (; known_ < seen_ && known + next.size() < most_known; ++known_) {
    if (!waits(known_)) continue;
    next.push_back(waiting_of(known_));
    --num_later_;
    later_work_ -= next.back().work();
  }
  admission_.add(next);
  foresee();
}

void RequestQueue::foresee() {
  const auto waiting = admission_.waiting();
  std::vector<std::int32_t> soon;
  while (foreseen_ < waiting.size() && foreseen_tokens_ < most_foreseen_tokens) {
    soon.push_back(waiting[foreseen_].request);
    foreseen_tokens_ += waiting[foreseen_++].prompt_tokens;
  }
  requests_.expect(soon);
}

std::vector<std::int32_t> RequestQueue::pending() const {
  std::vector<std::int32_t> all;
  for (const WaitingRequest& waiting : admission_.waiting()) {
    if (!waiting.resumed) all.push_back(waiting.request);
  }
  for (std::size_t i = known_; i < seen_; ++i) {
    if (waits(i)) all.push_back(static_cast<std::int32_t>(i));
  }
  return all;
}

std::vector<std::int32_t> RequestQueue::resumed() const {
  std::vector<std::int32_t> all;
  const auto count = static_cast<std::size_t>(num_resumed());
  for (const WaitingRequest& waiting : admission_.waiting().first(count)) {
    all.push_back(waiting.request);
  }
  return all;
}

bool RequestQueue::wait_for_next() {
  while (admission_.waiting().empty() && more_ && more_()) take_new();
  return !admission_.waiting().empty();
}

std::int64_t RequestQueue::line_of(std::int32_t request) const {
  return static_cast<std::int64_t>(requests_[static_cast<std::size_t>(request)].line);
}

bool RequestQueue::held_back() const {
  const auto waiting = admission_.waiting();
  return !waiting.empty() && line_of(waiting.front().request) > last_line_;
}

/// Resumed ones go first, and follow one another in order as the others do.
std::int64_t RequestQueue::oldest_line() const {
  const auto waiting = admission_.waiting();
  std::int64_t oldest = std::numeric_limits<std::int64_t>::max();
  for (const std::int32_t first : {0, num_resumed()}) {
    if (first >= std::ssize(waiting)) continue;
    oldest = std::min(oldest, line_of(waiting[static_cast<std::size_t>(first)].request));
  }
  return oldest;
}

bool RequestQueue::line_begun() const {
  const auto waiting = admission_.waiting();
  const auto resumed = static_cast<std::size_t>(num_resumed());
  return resumed < waiting.size() &&
         static_cast<std::size_t>(waiting[resumed].request) < begun_until_;
}

/// A request that was under way has pages of its own, which other ranks know nothing of; one that
/// scores its prompt computes all of it.
bool RequestQueue::shares(const WaitingRequest& request) const {
  return options_.share_prefixes && !request.resumed &&
         requests_[static_cast<std::size_t>(request.request)].scores_prompt == 0;
}

void RequestQueue::find_held(std::size_t num_ranks) {
  const WaitingRequest& next = admission_.waiting().front();
  held_.clear();
  if (!shares(next)) return;
  held_.resize(num_ranks);
  if (keys_of_ != next.request) {
    keys_of_ = next.request;
    keys_ = page_keys(requests_.whole(static_cast<std::size_t>(next.request)).tokens,
                      options_.page_tokens);
  }
  homes_.held_of(keys_, held_);
}

std::int64_t RequestQueue::next_pages() {
  if (!has_next()) return 0;
  const std::int64_t pages = admission_.waiting().front().pages;
  find_held(num_ranks_);
  std::int64_t most = 0;
  for (const HeldPrefix& held : held_) most = std::max(most, held.pages);
  return std::max<std::int64_t>(1, pages - most);
}

void RequestQueue::finished(std::span<const std::int32_t> requests) {
  for (const std::int32_t request : requests) homes_.finished(request);
}

std::vector<RequestQueue::Grant> RequestQueue::grant(std::span<RankLoad> loads, std::int64_t most) {
  std::vector<Grant> grants;
  num_ranks_ = loads.size();
  while (has_next() && std::ssize(grants) < most) {
    const WaitingRequest next = admission_.waiting().front();
    const bool resumed = next.resumed;
    loads[0].line_begun = line_begun() ? 1 : 0;
    if (!admits_new(loads) && !resumed) break;
    find_held(num_ranks_);
    const auto grant = admission_.next(loads, held_);
    if (!grant) break;
    if (shares(next)) homes_.given(grant->request, grant->rank, keys_);
    const auto index = static_cast<std::size_t>(grant->request);
    std::size_t end = index + 1;
    while (end < requests_.size() && requests_[end].later_part == 1) ++end;
    const bool in_parts = requests_[index].later_part == 1 || end > index + 1;
    if (in_parts) begun_until_ = std::max(begun_until_, end);
    grants.push_back({grant->rank, {grant->request, kept_of(index).cached, requests_.give(index)}});
    if (foreseen_ > 0) {
      --foreseen_;
      foreseen_tokens_ -= next.prompt_tokens;
    }
    if (2 * admission_.waiting().size() < most_known) fill();
  }
  foresee();
  return grants;
}

std::int32_t RequestQueue::num_resumed() const {
  const auto waiting = admission_.waiting();
  const auto first_new = std::ranges::find_if_not(waiting, &WaitingRequest::resumed);
  return static_cast<std::int32_t>(first_new - waiting.begin());
}

}  // namespace atl
