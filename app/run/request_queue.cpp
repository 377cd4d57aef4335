#include "app/run/request_queue.hpp"

#include <algorithm>
#include <utility>

#include "app/plan/update_policy.hpp"
#include "app/run/request_needs.hpp"

namespace atl {

RequestQueue::RequestQueue(std::vector<io::Request>& requests, std::span<const KeptProgress> kept,
                           const BatchOptions& options, const std::string& sized_by, More more)
    : requests_(requests),
      kept_(kept.begin(), kept.end()),
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
  const io::Request& request = requests_[index];
  const KeptProgress kept = kept_of(index);
  const auto length = static_cast<std::int64_t>(request.tokens.size());
  return {.request = static_cast<std::int32_t>(index),
          .pages = pages_needed(request, options_),
          .prompt_tokens = std::max<std::int64_t>(0, length - kept.cached),
          .new_tokens = new_tokens_of(request, options_) - kept.generated,
          .resumed = kept.cached > 0};
}

/// What was under way is among the first, all of which a
/// resumed run has read before.
void RequestQueue::take_new() {
  std::vector<WaitingRequest> fresh;
  for (; seen_ < requests_.size(); ++seen_) {
    io::Request& request = requests_[seen_];
    if (!request.error.empty() || kept_of(seen_).finished) continue;
    refuse_beyond_cache(request, options_, sized_by_);
    if (request.error.empty()) fresh.push_back(waiting_of(seen_));
  }
  for (const WaitingRequest& waiting : fresh) total_work_ += waiting.work();
  admission_.add(fresh);
}

bool RequestQueue::wait_for_next() {
  while (admission_.waiting().empty() && more_ && more_()) take_new();
  return !admission_.waiting().empty();
}

bool RequestQueue::held_back() const {
  const auto waiting = admission_.waiting();
  return !waiting.empty() &&
         requests_[static_cast<std::size_t>(waiting.front().request)].line > last_line_;
}

/// Resumed ones go first, and follow one another in order as the others do.
std::int64_t RequestQueue::oldest_line() const {
  const auto waiting = admission_.waiting();
  std::int64_t oldest = std::numeric_limits<std::int64_t>::max();
  for (const std::int32_t first : {0, num_resumed()}) {
    if (first >= std::ssize(waiting)) continue;
    const auto request = static_cast<std::size_t>(waiting[static_cast<std::size_t>(first)].request);
    oldest = std::min(oldest, requests_[request].line);
  }
  return oldest;
}

/// A request that was under way has pages of its own, which other ranks know nothing of.
void RequestQueue::find_held(std::size_t num_ranks) {
  const WaitingRequest& next = admission_.waiting().front();
  held_.clear();
  if (!options_.share_prefixes || next.resumed) return;
  held_.resize(num_ranks);
  if (keys_of_ != next.request) {
    keys_of_ = next.request;
    keys_ =
        page_keys(requests_[static_cast<std::size_t>(next.request)].tokens, options_.page_tokens);
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
    const bool resumed = admission_.waiting().front().resumed;
    if (!admits_new(loads) && !resumed) break;
    find_held(num_ranks_);
    const auto grant = admission_.next(loads, held_);
    if (!grant) break;
    if (options_.share_prefixes && !resumed) homes_.given(grant->request, grant->rank, keys_);
    const auto index = static_cast<std::size_t>(grant->request);
    io::Request asked = requests_[index];
    requests_[index].tokens = {};  // with their memory
    grants.push_back({grant->rank, {grant->request, kept_of(index).cached, std::move(asked)}});
  }
  return grants;
}

std::int32_t RequestQueue::num_resumed() const {
  const auto waiting = admission_.waiting();
  const auto first_new = std::ranges::find_if_not(waiting, &WaitingRequest::resumed);
  return static_cast<std::int32_t>(first_new - waiting.begin());
}

}  // namespace atl
