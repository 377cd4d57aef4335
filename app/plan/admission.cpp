#include "app/plan/admission.hpp"

#include <algorithm>
#include <cstddef>

namespace atl {

namespace {

HeldPrefix held_on(std::size_t rank, std::span<const HeldPrefix> held) {
  return held.empty() ? HeldPrefix() : held[rank];
}

}  // namespace

int rank_for(const WaitingRequest& request, std::span<const RankLoad> loads,
             std::span<const HeldPrefix> held) {
  int best = -1;
  std::int64_t least = 0;
  for (std::size_t rank = 0; rank < loads.size(); ++rank) {
    const RankLoad& load = loads[rank];
    const HeldPrefix here = held_on(rank, held);
    if (load.free_sequences == 0 || load.free_pages < request.pages - here.pages) continue;
    const std::int64_t work = load.remaining_work - here.tokens;
    if (best >= 0 && work >= least) continue;
    best = static_cast<int>(rank);
    least = work;
  }
  return best;
}

void Admission::add(std::span<const WaitingRequest> requests) {
  if (2 * next_ >= queue_.size()) {  // of those given out little is kept
    queue_.erase(queue_.begin(), queue_.begin() + static_cast<std::ptrdiff_t>(next_));
    next_ = 0;
  }
  const auto old = static_cast<std::ptrdiff_t>(queue_.size());
  queue_.insert(queue_.end(), requests.begin(), requests.end());
  std::stable_partition(queue_.begin() + old, queue_.end(),
                        [](const WaitingRequest& waiting) { return waiting.resumed; });
  for (const WaitingRequest& waiting : requests) work_ += waiting.work();
}

std::optional<Admission::Grant> Admission::next(std::span<RankLoad> loads,
                                                std::span<const HeldPrefix> held) {
  if (next_ == queue_.size()) return std::nullopt;
  const WaitingRequest& waiting = queue_[next_];
  const int rank = rank_for(waiting, loads, held);
  if (rank < 0) return std::nullopt;
  RankLoad& load = loads[static_cast<std::size_t>(rank)];
  const HeldPrefix here = held_on(static_cast<std::size_t>(rank), held);
  load.prompt_tokens += waiting.prompt_tokens;  // at most: what is held may not be computed yet
  if (waiting.prompt_tokens == 0) load.decoding += 1;
  load.remaining_work += waiting.work() - here.tokens;
  load.free_pages -= waiting.pages - here.pages;
  load.free_sequences -= 1;
  work_ -= waiting.work();
  ++next_;
  return Grant{waiting.request, rank};
}

}  // namespace atl
