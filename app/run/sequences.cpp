#include "app/run/sequences.hpp"

#include <algorithm>

#include "compute/error.hpp"

namespace atl {

Sequences::Sequences(const SequenceRoom& room) : slots_(static_cast<std::size_t>(room.max)) {
  for (Sequence& sequence : slots_) {
    sequence.tokens.reserve(static_cast<std::size_t>(room.longest));
    sequence.logprobs.reserve(static_cast<std::size_t>(room.longest));
    sequence.pages.reserve(static_cast<std::size_t>(room.most_pages));
    sequence.lookup = PromptLookup(room.speculate, room.longest);
    sequence.proposed.reserve(static_cast<std::size_t>(room.speculate));
  }
  taken_.reserve(slots_.size());
}

Sequence& Sequences::start(std::int32_t request, std::span<const std::int32_t> prompt,
                           int max_new) {
  const auto free = std::find_if(slots_.begin(), slots_.end(),
                                 [](const Sequence& sequence) { return sequence.request < 0; });
  require(free != slots_.end(), "internal: request {} was given to a full rank", request);
  Sequence& sequence = *free;
  sequence.request = request;
  sequence.tokens.assign(prompt.begin(), prompt.end());
  sequence.pages.clear();
  sequence.prompt_length = static_cast<std::int32_t>(prompt.size());
  sequence.cached = 0;
  sequence.shared_pages = 0;
  sequence.donor = -1;
  sequence.awaited = 0;
  sequence.landed = 0;
  sequence.max_new = max_new;
  sequence.logprobs.clear();
  sequence.tops.clear();
  sequence.prompt_logprobs.clear();
  sequence.prompt_tops.clear();
  sequence.greedy = true;
  sequence.lookup.begin();
  sequence.proposed.clear();
  sequence.agreed = 0;
  sequence.times = {};
  taken_.push_back(static_cast<std::int32_t>(free - slots_.begin()));
  return sequence;
}

void Sequences::drop_ended() {
  std::erase_if(taken_, [this](std::int32_t slot) { return in_slot(slot).request < 0; });
}

RankLoad Sequences::load() const {
  RankLoad load;
  for (const std::int32_t slot : taken_) {
    const Sequence& sequence = in_slot(slot);
    const std::int32_t done = std::max(sequence.cached, sequence.awaited);
    const std::int32_t prompt_left = std::max(0, sequence.prompt_length - done);
    if (sequence.awaited == 0) load.prompt_tokens += prompt_left;
    if (!sequence.prefilling()) load.decoding += sequence.rows();
    load.remaining_work += prompt_left + sequence.max_new - sequence.num_generated();
  }
  load.sequences = static_cast<std::int32_t>(taken_.size());
  load.free_sequences = static_cast<std::int32_t>(slots_.size() - taken_.size());
  return load;
}

}  // namespace atl
