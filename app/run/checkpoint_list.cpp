// Which sequences go into a checkpoint, and what several of them have in common.

#include <unordered_map>

#include "app/run/checkpoints.hpp"
#include "app/run/shared_runs.hpp"
#include "app/run/twins.hpp"

namespace atl {

/// Its numbers are noted, and what it has beside them where this rank speaks for it.
void Checkpoints::add(const Listed& listed, Kinds& kinds) {
  own_.push_back(listed.sequence);
  own_.back().complete = 0;
  holders_.push_back(listed.holders);
  old_.push_back(listed.old);
  if (!speaks_) return;
  const auto append = [](auto& all, const auto& more) {
    all.insert(all.end(), more.begin(), more.end());
  };
  append(kinds.tokens, listed.tokens);
  append(kinds.logprobs, listed.logprobs);
  append(kinds.tops, listed.tops);
}

void Checkpoints::list_live(const CheckpointSource& source, Kinds& kinds) {
  std::vector<const Sequence*> live;
  SharedRuns runs(source.page_tokens);
  for (const auto& batcher : source.batchers) {
    const Sequences& sequences = batcher->sequences();
    for (const std::int32_t slot : sequences.taken()) {
      const Sequence& sequence = sequences.in_slot(slot);
      if (is_twin(sequence.request)) continue;  // its request makes it again
      live.push_back(&sequence);
      runs.count(sequence.pages, sequence.cached);
    }
  }
  for (const Sequence* each : live) {
    const Sequence& s = *each;
    std::int64_t beginning = -1;
    std::int64_t first = 0;
    for (const SharedRuns::Run& run : runs.of(s.pages, s.cached)) {
      const auto [known, is_new] = begun_.try_emplace(run.last_page, std::ssize(own_));
      if (is_new) {
        Listed listed;
        listed.sequence.request = io::CheckpointSequence::shared_beginning;
        listed.sequence.cached = run.positions;
        listed.sequence.beginning = beginning;
        listed.sequence.first = first;
        add(listed, kinds);
      }
      holders_[static_cast<std::size_t>(known->second)].push_back(s.request);
      beginning = known->second;
      first += run.positions;
    }
    Listed listed;
    listed.logprobs = s.prompt_logprobs;
    listed.logprobs.insert(listed.logprobs.end(), s.logprobs.begin(), s.logprobs.end());
    listed.tops = s.prompt_tops;
    listed.tops.insert(listed.tops.end(), s.tops.begin(), s.tops.end());
    listed.tokens.assign(s.generated().begin(), s.generated().end());
    listed.holders = {s.request};
    listed.sequence = {s.request,
                       s.num_generated(),
                       std::ssize(listed.logprobs),
                       s.cached - first,
                       0,
                       std::ssize(listed.tops),
                       s.greedy ? 1 : 0,
                       beginning,
                       first};
    add(listed, kinds);
  }
}

/// What an earlier run kept of those that this one has not taken up yet, and of their beginnings.
void Checkpoints::list_carried(const CheckpointSource& source, Kinds& kinds) {
  std::unordered_map<std::size_t, std::int64_t> place_of;  // of the earlier file's
  int turn = 0;
  for (const std::int32_t request : source.resumed_waiting) {
    if (turn++ % source.kv->num_owners() != source.kv->owner()) continue;
    std::int64_t beginning = -1;
    for (const std::size_t saved : reader_->chain_of(saved_.at(request))) {
      const auto [known, is_new] = place_of.try_emplace(saved, std::ssize(own_));
      if (is_new) {
        Listed listed;
        listed.sequence = reader_->contents().sequences[saved];
        listed.sequence.beginning = beginning;
        listed.old = saved;
        const auto tokens = reader_->tokens_of(saved);
        const auto logprobs = reader_->logprobs_of(saved);
        listed.tokens.assign(tokens.begin(), tokens.end());
        listed.logprobs.assign(logprobs.begin(), logprobs.end());
        listed.tops = reader_->tops_of(saved);
        add(listed, kinds);
      }
      beginning = known->second;
    }
  }
}

/// Collective: what goes into a checkpoint of now, and which of it this rank writes.
Checkpoints::Kinds Checkpoints::list_sequences(const CheckpointSource& source,
                                               io::CheckpointContents& contents) {
  own_.clear();
  holders_.clear();
  old_.clear();
  begun_.clear();
  speaks_ = source.kv->speaks();
  Kinds kinds;
  list_live(source, kinds);
  first_carried_ = own_.size();
  list_carried(source, kinds);
  if (source.queue != nullptr) {
    const std::vector<std::int32_t> pending = source.queue->pending();
    contents.pending.assign(pending.begin(), pending.end());
  }
  const std::size_t told = speaks_ ? own_.size() * sizeof(own_[0]) : 0;
  for (const std::string& text :
       world_.allgather_texts(std::string(reinterpret_cast<const char*>(own_.data()), told))) {
    const auto* first = reinterpret_cast<const io::CheckpointSequence*>(text.data());
    const std::size_t count = text.size() / sizeof(own_[0]);
    contents.sequences.insert(contents.sequences.end(), first, first + count);
    contents.sequences_of.push_back(static_cast<std::int64_t>(count));
  }
  return kinds;
}

}  // namespace atl
