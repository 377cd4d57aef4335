#include "app/run/twins.hpp"

#include <algorithm>
#include <utility>

#include "app/run/request_needs.hpp"

namespace atl {

void Twins::keep_prompts(const Sequences& sequences) {
  for (const std::int32_t slot : sequences.taken()) {
    const Sequence& sequence = sequences.in_slot(slot);
    if (is_twin(sequence.request) || !is_sampled(sequence.asked.line)) continue;
    const auto [kept, is_new] = prompts_.try_emplace(sequence.request, sequence.asked);
    if (!is_new) continue;
    kept->second.tokens.assign(sequence.tokens.begin(),
                               sequence.tokens.begin() + sequence.prompt_length);
  }
}

void Twins::take(std::vector<FinishedRequest>& finished) {
  for (const FinishedRequest& done : finished) {
    if (is_twin(done.request)) {
      compare(done);
    } else if (is_sampled(done.asked.line)) {
      make(done);
    }
  }
  std::erase_if(finished, [](const FinishedRequest& done) { return is_twin(done.request); });
}

void Twins::make(const FinishedRequest& done) {
  auto prompt = prompts_.extract(done.request);
  if (!done.error.empty() || done.result.logprobs.empty() || prompt.empty()) {
    return count(done.asked.line, {});
  }
  Twin& twin = twins_[done.request];
  twin.asked = std::move(prompt.mapped());
  twin.logprobs = done.result.logprobs;
  if (mode_ == Mode::generate) {
    twin.forced = done.result.tokens;
    twin.asked.batch.reset();  // it scores no prompt
    twin.asked.max_tokens = static_cast<std::int64_t>(twin.forced.size());
  }
  waiting_.push_back(done.request);
}

void Twins::take_up(Batcher& batcher) {
  while (!waiting_.empty()) {
    Twin& twin = twins_.at(waiting_.front());
    const RankLoad load = batcher.load();
    if (load.free_sequences == 0 || load.free_pages < pages_needed(twin.asked, batch_)) return;
    batcher.take_up({first_twin + waiting_.front(), 0, std::move(twin.asked)},
                    std::move(twin.forced));
    waiting_.pop_front();
  }
}

void Twins::compare(const FinishedRequest& done) {
  const auto twin = twins_.extract(done.request - first_twin);
  Drift drift;
  const std::vector<float>& with = twin.mapped().logprobs;
  const std::vector<float>& without = done.result.logprobs;
  for (std::size_t i = 0; i < std::min(with.size(), without.size()); ++i) {
    drift.add(with[i], without[i]);
  }
  ++compared_;
  all_ += drift;
  count(done.asked.line, drift);
}

void Twins::count(std::int64_t line, const Drift& drift) {
  Done& done = done_[block_of(line)];
  ++done.requests;
  done.drift += drift;
}

Twins::Done Twins::done(std::int64_t block) const {
  const auto found = done_.find(block);
  return found == done_.end() ? Done{} : found->second;
}

}  // namespace atl
