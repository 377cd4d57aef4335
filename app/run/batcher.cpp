#include "app/run/batcher.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "app/run/request_needs.hpp"
#include "compute/error.hpp"
#include "io/model_text.hpp"

namespace atl {

namespace {

/// Why a sequence ends whose next logits, or the log-probability made of them, are not finite.
std::string not_finite(const Sequence& sequence, const BatchOptions& options) {
  // In scoring a log-probability for each position before this one is there, of a continuation for
  // each from the prompt's last on.
  const std::int64_t first = std::max<std::int64_t>(0, sequence.asked.scored_from - 1);
  std::int64_t position = std::int64_t{sequence.length()} - 1;
  if (options.mode == Mode::score) {
    position = first + std::ssize(sequence.logprobs);
  } else if (sequence.asked.scores_prompt() && sequence.num_generated() == 0) {
    position = std::ssize(sequence.prompt_logprobs);
  }
  const std::int64_t generated = position - sequence.prompt_length + 1;
  const std::string where = generated > 0 ? fmt::format("generated token {}", generated)
                                          : fmt::format("token {} of the prompt's {}", position + 1,
                                                        sequence.prompt_length);
  return fmt::format(
      "the logits at position {} ({}) are not finite: {}", position, where,
      options.dtype == DType::float32
          ? "a weight of the model is not finite, or an activation overflowed even float32; see "
            "what atoll inspect says of the model file"
          : fmt::format("an activation overflowed {}, or a weight of the model is not finite; "
                        "where atoll inspect names no such weight, run this request again with "
                        "--dtype float32, with an --output of its own",
                        name_of(options.dtype)));
}

/// That what was kept is what the request has after so many positions; checksums alone do not say
/// so.
void require_own(const SavedSequence& saved, const Sequence& sequence, std::int32_t cached,
                 Mode mode) {
  const io::Request& asked = sequence.asked;
  std::int64_t logprobs = std::ssize(saved.generated);
  if (mode == Mode::score) {
    logprobs = std::max<std::int64_t>(0, cached - std::max<std::int64_t>(0, asked.scored_from - 1));
  } else if (asked.scores_prompt()) {
    logprobs += std::min(cached, sequence.prompt_length - 1);
  }
  const std::int64_t tops = mode == Mode::score ? 0 : logprobs * asked.top_logprobs;
  require(std::ssize(saved.logprobs) == logprobs && std::ssize(saved.tops) == tops,
          "the checkpoint is damaged: {} log-probabilities and {} most probable tokens cannot be "
          "those of request {}, which has {} and {} there; remove it",
          saved.logprobs.size(), saved.tops.size(), sequence.request, logprobs, tops);
}

bool contains(const std::vector<std::int32_t>& ids, std::int32_t token) {
  return std::find(ids.begin(), ids.end(), token) != ids.end();
}

}  // namespace

// All that a pass touches is sized here, so that passes do not allocate.
Batcher::Batcher(const BatchOptions& options, const SequenceRoom& room, Restore restore,
                 std::shared_ptr<PrefixPages> pages)
    : options_(options),
      restore_(std::move(restore)),
      pages_(pages ? std::move(pages) : std::make_shared<PrefixPages>(options)),
      sequences_(room),
      pass_(options) {}

void Batcher::begin_weights(const std::string& name) {
  weights_.push_back(name);
  pages_->forget();
}

void Batcher::take_shared() {
  for (const std::int32_t slot : sequences_.taken()) pages_->join(sequences_.in_slot(slot));
}

void Batcher::look_ahead() {
  if (options_.speculate == 0 || options_.mode == Mode::score) return;
  // Each sequence's own row is certain of its place.
  std::int64_t room = options_.max_pass_tokens - std::ssize(sequences_.taken());
  for (const std::int32_t slot : sequences_.taken()) {
    Sequence& sequence = sequences_.in_slot(slot);
    sequence.proposed.clear();
    // Logits that change with what was drawn are those of one row alone.
    if (sequence.prefilling() || !sequence.forced.empty() || sequence.changes.vary()) continue;
    // What is drawn after the last of them is a token, too.
    const std::int64_t left = sequence.max_new - sequence.num_generated() - 1;
    sequence.lookup.propose(sequence.tokens, static_cast<int>(std::min(room, left)),
                            sequence.proposed);
    room -= std::ssize(sequence.proposed);
  }
}

RankLoad Batcher::load() const {
  RankLoad load = sequences_.load();
  load.free_pages = pages_->num_free();
  return load;
}

std::span<const std::int32_t> Batcher::pages_of(std::int32_t request) const {
  for (const std::int32_t slot : sequences_.taken()) {
    const Sequence& sequence = sequences_.in_slot(slot);
    if (sequence.request == request) return sequence.pages;
  }
  return {};
}

bool Batcher::next_pass(std::span<const RankLoad> loads) {
  if (!size_up(loads)) return false;
  cut(chunk_count(most_rows_, options_));
  return true;
}

bool Batcher::size_up(std::span<const RankLoad> loads) {
  has_prompt_ = std::any_of(loads.begin(), loads.end(),
                            [](const RankLoad& load) { return load.prompt_tokens > 0; });
  most_rows_ = most_pass_rows(loads, options_);
  return most_rows_ > 0;
}

void Batcher::take_up(Admitted admitted, std::vector<std::int32_t> forced) {
  const io::Request& asked = admitted.asked;
  Sequence& sequence =
      sequences_.start(admitted.request, asked.tokens, new_tokens_of(asked, options_));
  const std::int64_t pages = pages_needed(asked, options_);
  if (!weights_.empty()) sequence.first_weights = weights_.size() - 1;
  sequence.asked = std::move(admitted.asked);
  sequence.asked.tokens = {};
  sequence.changes.begin(sequence.asked, sequence.tokens, options_.stop_token_ids);
  sequence.stops.begin(sequence.asked.stop);
  sequence.forced = std::move(forced);
  if (admitted.cached == 0 && !sequence.asked.scores_prompt()) {
    return pages_->begin(sequence, pages);
  }
  pages_->begin_alone(sequence, pages);
  if (admitted.cached > 0) restore(sequence, admitted.cached);
}

void Batcher::restore(Sequence& sequence, std::int32_t cached) {
  const SavedSequence saved = restore_(sequence.request, sequence.pages);
  require_own(saved, sequence, cached, options_.mode);
  for (const std::int32_t token : saved.generated) grow(sequence, token);
  // Those of the prompt, where it is scored beside what follows, come first.
  const std::size_t of_prompt =
      sequence.asked.scores_prompt() ? saved.logprobs.size() - saved.generated.size() : 0;
  const auto own = saved.logprobs.begin() + static_cast<std::ptrdiff_t>(of_prompt);
  sequence.prompt_logprobs.assign(saved.logprobs.begin(), own);
  sequence.logprobs.assign(own, saved.logprobs.end());
  const auto own_tops =
      saved.tops.begin() + static_cast<std::ptrdiff_t>(of_prompt) * sequence.asked.top_logprobs;
  sequence.prompt_tops.assign(saved.tops.begin(), own_tops);
  sequence.tops.assign(own_tops, saved.tops.end());
  sequence.greedy = saved.greedy;
  sequence.cached = cached;
  sequence.times.first_token = -1;  // in another run
  pages_->landed(sequence);
}

SamplingRequest Batcher::sampling_of(const HeadRow& head) const {
  const Sequence& sequence = sequences_.in_slot(head.slot);
  const io::Request& asked = sequence.asked;
  if (head.target >= 0) return {{}, 0, head.target, {}, asked.top_logprobs};
  const std::int32_t at = sequence.num_generated() + head.ahead;
  return {asked.sampling(),
          at,
          sequence.forced.empty() ? -1 : sequence.forced[static_cast<std::size_t>(at)],
          {},
          asked.top_logprobs};
}

bool Batcher::is_stop(const Sequence& sequence, std::int32_t token) const {
  return contains(sequence.asked.stop_token_ids, token) || contains(options_.stop_token_ids, token);
}

PassTokens Batcher::finish_pass(double now) {
  PassTokens tokens{.processed = pass_.rows(), .prompt = pass_.prompt_rows(), .generated = 0};
  rejected_.clear();
  for (int c = 0; c < pass_.num_chunks(); ++c) {
    const ChunkBatch& chunk = pass_.chunk(c);
    for (std::size_t i = 0; i < chunk.head.size(); ++i) {
      Sequence& sequence = sequences_.in_slot(chunk.head[i].slot);
      const std::int32_t ahead = chunk.head[i].ahead;
      const bool ended = sequence.request < 0;  // at an earlier row of this pass
      if (ahead > 0 && (ended || ahead > sequence.agreed)) {
        rejected_.push_back({c, chunk.head[i].row});
      }
      if (ended) continue;
      if (ahead > 0) ++speculation_.proposed;
      if (ahead > sequence.agreed) continue;  // of a token that was not drawn
      if (!chunk.finite(i)) {
        std::string error = not_finite(sequence, options_);
        finish(sequence, "error").error = std::move(error);
      } else if (options_.mode == Mode::score) {
        const ScoredToken& scored = chunk.scored[chunk.head[i].outcome];
        sequence.logprobs.push_back(scored.logprob);
        sequence.greedy = sequence.greedy && scored.greedy != 0;
      } else if (chunk.head[i].target >= 0) {
        const HeadRow& head = chunk.head[i];
        const auto known = std::span(chunk.sampled).subspan(head.outcome);
        sequence.prompt_logprobs.push_back(known[0].logprob);
        sequence.prompt_tops.insert(sequence.prompt_tops.end(), known.begin() + 1,
                                    known.begin() + 1 + head.tops);
      } else {
        ++tokens.generated;
        (ahead > 0 ? speculation_.accepted : speculation_.alone) += 1;
        const HeadRow& head = chunk.head[i];
        const auto sampled =
            std::span(chunk.sampled).subspan(head.outcome, 1 + static_cast<std::size_t>(head.tops));
        take_sampled(sequence, sampled, now);
        if (ahead < std::ssize(sequence.proposed) &&
            sequence.proposed[static_cast<std::size_t>(ahead)] == sampled[0].token) {
          sequence.agreed = ahead + 1;
        }
      }
    }
  }
  if (options_.mode == Mode::score) {
    finish_scored(now);
  } else {
    finish_empty(now);
  }
  sequences_.drop_ended();
  judge_proposals();
  for (const std::int32_t slot : sequences_.taken()) pages_->landed(sequences_.in_slot(slot));
  pages_->count_computed(pass_.prompt_rows());
  return tokens;
}

bool Batcher::grow(Sequence& sequence, std::int32_t token) const {
  sequence.tokens.push_back(token);
  sequence.changes.add(token);
  if (!sequence.stops.any()) return false;
  const bool found = sequence.stops.add(options_.text->bytes_of(token, /*special_tokens=*/false));
  return found && sequence.num_generated() >= sequence.asked.min_tokens;
}

void Batcher::take_sampled(Sequence& sequence, std::span<const SampledToken> sampled, double now) {
  if (sequence.num_generated() == 0) sequence.times.first_token = now;
  const std::int32_t token = sampled[0].token;
  if (is_stop(sequence, token)) {
    finish(sequence, "stop");
    return;
  }
  sequence.times.last_token = now;
  sequence.logprobs.push_back(sampled[0].logprob);
  sequence.tops.insert(sequence.tops.end(), sampled.begin() + 1, sampled.end());
  if (grow(sequence, token)) {
    finish(sequence, "stop").result.bytes_before_stop = sequence.stops.found_at();
    return;
  }
  if (sequence.num_generated() == sequence.max_new) finish(sequence, "length");
}

/// Keys and values of those that were not drawn are written anew when their positions come.
void Batcher::judge_proposals() {
  if (options_.speculate == 0) return;
  for (const std::int32_t slot : sequences_.taken()) {
    Sequence& sequence = sequences_.in_slot(slot);
    if (sequence.proposed.empty()) continue;
    sequence.lookup.judge(static_cast<int>(std::ssize(sequence.proposed)), sequence.agreed);
    sequence.cached = std::min(sequence.cached, sequence.length() - 1);
    sequence.proposed.clear();
    sequence.agreed = 0;
  }
}

void Batcher::finish_scored(double now) {
  for (const std::int32_t slot : sequences_.taken()) {
    Sequence& sequence = sequences_.in_slot(slot);
    if (sequence.request < 0 || sequence.prefilling()) continue;
    sequence.times = {now, now};
    finish(sequence, "length");
  }
}

void Batcher::finish_empty(double now) {
  for (const std::int32_t slot : sequences_.taken()) {
    Sequence& sequence = sequences_.in_slot(slot);
    if (sequence.request < 0 || sequence.max_new > 0 || sequence.prefilling()) continue;
    sequence.times = {now, now};
    finish(sequence, "length");
  }
}

std::string Batcher::weights_of(const Sequence& sequence) const {
  return fmt::format("{}", fmt::join(std::span(weights_).subspan(sequence.first_weights), ","));
}

FinishedRequest& Batcher::finish(Sequence& sequence, const char* reason) {
  FinishedRequest& done = finished_.emplace_back();
  done.request = sequence.request;
  done.asked = sequence.asked;
  done.times = sequence.times;
  done.weights = weights_of(sequence);
  done.result.finish_reason = reason;
  done.result.prompt_tokens = sequence.prompt_length;
  done.result.logprobs = sequence.logprobs;
  done.result.tops = sequence.tops;
  if (sequence.asked.scores_prompt()) {
    done.result.prompt.assign(sequence.tokens.begin(),
                              sequence.tokens.begin() + sequence.prompt_length);
    done.result.prompt_logprobs = sequence.prompt_logprobs;
    done.result.prompt_tops = sequence.prompt_tops;
  }
  done.result.greedy = sequence.greedy;
  if (options_.mode == Mode::generate) {
    const auto generated = sequence.generated();
    done.result.tokens.assign(generated.begin(), generated.end());
  } else {
    done.result.tokens.assign(sequence.tokens.begin() + sequence.asked.scored_from,
                              sequence.tokens.end());
  }
  pages_->release(sequence);
  sequence.request = -1;
  return done;
}

}  // namespace atl
