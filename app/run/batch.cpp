#include "app/run/batch.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "compute/error.hpp"

namespace atl {

bool ChunkBatch::finite(std::size_t head_row) const {
  if (sampled.empty()) return std::isfinite(logprobs[head_row]);
  return sampled[head_row].token >= 0 && std::isfinite(sampled[head_row].logprob);
}

void ChunkBatch::clear() {
  tokens.clear();
  segments.clear();
  requests.clear();
  head.clear();
  sampled.clear();
  logprobs.clear();
}

namespace {
int new_tokens_of(const io::Request& request, const BatchOptions& options) {
  if (options.mode == Mode::score) return 0;
  return request.max_tokens.value_or(options.max_tokens);
}

/// Tokens of the prompt and at most still to generate.
std::int64_t work_of(const io::Request& request, const BatchOptions& options) {
  return static_cast<std::int64_t>(request.tokens.size()) + new_tokens_of(request, options);
}
}  // namespace

std::int64_t Batcher::pages_needed(const io::Request& request, const BatchOptions& options) {
  return (work_of(request, options) + options.page_tokens - 1) / options.page_tokens;
}

Batcher::Batcher(const std::vector<io::Request>& requests, const BatchOptions& options, int rank,
                 std::vector<KeptProgress> progress, Restore restore)
    : requests_(requests),
      options_(options),
      rank_(rank),
      progress_(std::move(progress)),
      restore_(std::move(restore)) {
  progress_.resize(requests_.size());
  std::size_t longest = 1;
  std::int64_t most_pages = 1;
  for (std::size_t i = 0; i < requests_.size(); ++i) {
    const io::Request& request = requests_[i];
    if (!request.error.empty() || progress_[i].finished) continue;
    queue_.push_back(static_cast<std::int32_t>(i));
    longest = std::max(longest, request.tokens.size() +
                                    static_cast<std::size_t>(new_tokens_of(request, options_)));
    most_pages = std::max(most_pages, pages_needed(request, options_));
    waiting_work_ += work_left(i);
  }
  std::stable_partition(queue_.begin(), queue_.end(), [this](std::int32_t i) {
    return progress_[static_cast<std::size_t>(i)].cached > 0;
  });
  // Everything a pass touches is sized here, so that passes do not allocate.
  slots_.resize(static_cast<std::size_t>(options_.max_sequences));
  for (Sequence& sequence : slots_) {
    sequence.tokens.reserve(longest);
    sequence.logprobs.reserve(longest);
    sequence.pages.reserve(static_cast<std::size_t>(most_pages));
  }
  order_.reserve(slots_.size());
  free_pages_.reserve(static_cast<std::size_t>(options_.num_pages));
  for (std::int64_t page = options_.num_pages; page-- > 0;) {
    free_pages_.push_back(static_cast<std::int32_t>(page));
  }
  chunks_.resize(static_cast<std::size_t>(options_.max_chunks));
  for (ChunkBatch& chunk : chunks_) {
    const auto rows = static_cast<std::size_t>(options_.max_pass_tokens);
    chunk.tokens.reserve(rows);
    chunk.segments.reserve(slots_.size() + 1);
    chunk.requests.reserve(slots_.size() + 1);
    chunk.head.reserve(rows);
    chunk.sampled.reserve(slots_.size());
    chunk.logprobs.reserve(rows);
  }
}

std::int64_t Batcher::prompt_left(std::size_t request) const {
  const auto length = static_cast<std::int64_t>(requests_[request].tokens.size());
  return std::max<std::int64_t>(0, length - progress_[request].cached);
}

std::int64_t Batcher::work_left(std::size_t request) const {
  return prompt_left(request) + new_tokens_of(requests_[request], options_) -
         progress_[request].generated;
}

RankLoad Batcher::load() const {
  RankLoad load;
  for (const std::int32_t slot : order_) {
    const Sequence& sequence = slots_[static_cast<std::size_t>(slot)];
    const int generated = static_cast<int>(sequence.tokens.size()) - sequence.prompt_length;
    if (sequence.prefilling()) {
      load.prompt_tokens += sequence.prompt_length - sequence.cached;
    } else {
      ++load.decoding;
    }
    load.remaining_work +=
        std::max(0, sequence.prompt_length - sequence.cached) + sequence.max_new - generated;
  }
  load.free_pages = static_cast<std::int64_t>(free_pages_.size());
  load.free_sequences = static_cast<std::int32_t>(slots_.size() - order_.size());
  return load;
}

std::vector<Batcher::View> Batcher::sequences() const {
  std::vector<View> views;
  for (const std::int32_t slot : order_) {
    const Sequence& s = slots_[static_cast<std::size_t>(slot)];
    const auto prompt = static_cast<std::size_t>(s.prompt_length);
    views.push_back(
        {s.request, s.cached, std::span(s.tokens).subspan(prompt), s.logprobs, s.pages});
  }
  return views;
}

std::span<const std::int32_t> Batcher::pages_of(std::int32_t request) const {
  for (const std::int32_t slot : order_) {
    const Sequence& sequence = slots_[static_cast<std::size_t>(slot)];
    if (sequence.request == request) return sequence.pages;
  }
  return {};
}

bool Batcher::restoring() const {
  return next_ < queue_.size() && progress_[static_cast<std::size_t>(queue_[next_])].cached > 0;
}

bool Batcher::next_pass(std::span<const RankLoad> loads) {
  loads_.assign(loads.begin(), loads.end());
  admit(loads_);
  std::int64_t most = 0;
  has_prompt_ = false;
  for (const RankLoad& load : loads_) {
    has_prompt_ |= load.prompt_tokens > 0;
    most = std::max(
        most, std::min<std::int64_t>(options_.max_pass_tokens, load.prompt_tokens + load.decoding));
  }
  if (most == 0) return false;
  num_chunks_ = static_cast<int>(
      std::clamp<std::int64_t>(most / options_.min_chunk_tokens, 1, options_.max_chunks));
  fill_pass();
  return true;
}

void Batcher::admit(std::span<RankLoad> loads) {
  for (; next_ < queue_.size(); ++next_) {
    const auto request = static_cast<std::size_t>(queue_[next_]);
    const std::int64_t pages = pages_needed(requests_[request], options_);
    std::size_t best = loads.size();
    for (std::size_t rank = 0; rank < loads.size(); ++rank) {
      if (loads[rank].free_sequences == 0 || loads[rank].free_pages < pages) continue;
      if (best == loads.size() || loads[rank].remaining_work < loads[best].remaining_work) {
        best = rank;
      }
    }
    if (best == loads.size()) return;  // in order: a later, smaller request does not overtake
    const std::int64_t work = work_left(request);
    const std::int64_t prompt = prompt_left(request);
    loads[best].prompt_tokens += prompt;
    if (prompt == 0) loads[best].decoding += 1;
    loads[best].remaining_work += work;
    waiting_work_ -= work;
    loads[best].free_pages -= pages;
    loads[best].free_sequences -= 1;
    if (static_cast<int>(best) == rank_) start(queue_[next_]);
  }
}

void Batcher::start(std::int32_t index) {
  const io::Request& request = requests_[static_cast<std::size_t>(index)];
  const auto free = std::find_if(slots_.begin(), slots_.end(),
                                 [](const Sequence& sequence) { return sequence.request < 0; });
  require(free != slots_.end(), "internal: request {} was given to a full rank", index);
  Sequence& sequence = *free;
  sequence.request = index;
  sequence.tokens.assign(request.tokens.begin(), request.tokens.end());
  sequence.prompt_length = static_cast<std::int32_t>(request.tokens.size());
  sequence.max_new = new_tokens_of(request, options_);
  sequence.cached = 0;
  sequence.logprobs.clear();
  sequence.times = {};
  sequence.pages.clear();
  for (std::int64_t left = pages_needed(request, options_); left > 0; --left) {
    sequence.pages.push_back(free_pages_.back());
    free_pages_.pop_back();
  }
  order_.push_back(static_cast<std::int32_t>(free - slots_.begin()));
  if (progress_[static_cast<std::size_t>(index)].cached > 0) restore(sequence);
}

void Batcher::restore(Sequence& sequence) {
  const SavedSequence saved = restore_(sequence.request, sequence.pages);
  sequence.tokens.insert(sequence.tokens.end(), saved.generated.begin(), saved.generated.end());
  sequence.logprobs = saved.logprobs;
  sequence.cached = progress_[static_cast<std::size_t>(sequence.request)].cached;
  sequence.times.first_token = -1;  // in another run
}

void Batcher::fill_pass() {
  for (ChunkBatch& chunk : chunks_) chunk.clear();
  pass_rows_ = 0;
  pass_prompt_tokens_ = 0;
  // What fits: one token of every generating sequence, then prompts in order of admission.
  std::int64_t budget = options_.max_pass_tokens;
  std::int64_t total = 0;
  for (const bool prefill : {false, true}) {
    for (const std::int32_t slot : order_) {
      const Sequence& sequence = slots_[static_cast<std::size_t>(slot)];
      if (sequence.prefilling() != prefill) continue;
      const std::int64_t wanted = prefill ? sequence.prompt_length - sequence.cached : 1;
      total += std::min(wanted, budget - total);
    }
  }
  budget = total;
  for (const bool prefill : {false, true}) {
    for (const std::int32_t slot : order_) {
      const Sequence& sequence = slots_[static_cast<std::size_t>(slot)];
      if (sequence.prefilling() != prefill || budget == 0) continue;
      const std::int64_t wanted = prefill ? sequence.prompt_length - sequence.cached : 1;
      const auto count = static_cast<std::int32_t>(std::min(wanted, budget));
      add_piece(slot, count, total);
      budget -= count;
      if (prefill) pass_prompt_tokens_ += count;
    }
  }
}

void Batcher::add_piece(std::int32_t slot, std::int32_t count, std::int64_t pass_tokens) {
  Sequence& sequence = slots_[static_cast<std::size_t>(slot)];
  while (count > 0) {
    // Chunk c holds rows [T c / C, T (c + 1) / C) of the pass.
    std::int64_t index = 0;
    while (pass_tokens * (index + 1) / num_chunks_ <= pass_rows_) ++index;
    const std::int64_t end = pass_tokens * (index + 1) / num_chunks_;
    ChunkBatch& chunk = chunks_[static_cast<std::size_t>(index)];
    const auto rows = static_cast<std::int32_t>(std::min<std::int64_t>(count, end - pass_rows_));
    const auto first_row = static_cast<std::int32_t>(chunk.tokens.size());
    chunk.segments.push_back({first_row, rows, sequence.cached, sequence.pages.data()});
    chunk.requests.push_back(sequence.request);
    for (std::int32_t i = 0; i < rows; ++i) {
      const std::int32_t position = sequence.cached + i;
      const auto p = static_cast<std::size_t>(position);
      chunk.tokens.push_back(sequence.tokens[p]);
      if (options_.mode == Mode::score) {
        if (p + 1 < sequence.tokens.size()) {
          chunk.head.push_back({first_row + i, slot, sequence.tokens[p + 1]});
        }
      } else if (p + 1 == sequence.tokens.size()) {
        chunk.head.push_back({first_row + i, slot, -1});
      }
    }
    sequence.cached += rows;
    pass_rows_ += rows;
    count -= rows;
  }
}

SamplingRequest Batcher::sampling_of(const HeadRow& head) const {
  const Sequence& sequence = slots_[static_cast<std::size_t>(head.slot)];
  const io::Request& request = requests_[static_cast<std::size_t>(sequence.request)];
  return {{request.temperature, request.top_p, request.seed},
          static_cast<std::int64_t>(sequence.tokens.size()) - sequence.prompt_length};
}

bool Batcher::is_stop(const Sequence& sequence, std::int32_t token) const {
  const auto& own = requests_[static_cast<std::size_t>(sequence.request)].stop_token_ids;
  return std::find(own.begin(), own.end(), token) != own.end() ||
         std::find(options_.stop_token_ids.begin(), options_.stop_token_ids.end(), token) !=
             options_.stop_token_ids.end();
}

PassTokens Batcher::finish_pass(double now) {
  PassTokens tokens;
  tokens.processed = pass_rows_;
  tokens.prompt = pass_prompt_tokens_;
  for (int c = 0; c < num_chunks_; ++c) {
    const ChunkBatch& chunk = chunks_[static_cast<std::size_t>(c)];
    for (std::size_t i = 0; i < chunk.head.size(); ++i) {
      Sequence& sequence = slots_[static_cast<std::size_t>(chunk.head[i].slot)];
      if (sequence.request < 0) continue;  // ended at an earlier row of this pass
      if (!chunk.finite(i)) {
        finish_not_finite(sequence);
        continue;
      }
      if (options_.mode == Mode::score) {
        sequence.logprobs.push_back(chunk.logprobs[i]);
        continue;
      }
      const SampledToken& sampled = chunk.sampled[i];
      const bool first =
          static_cast<std::int32_t>(sequence.tokens.size()) == sequence.prompt_length;
      if (first) sequence.times.first_token = now;
      ++tokens.generated;
      if (is_stop(sequence, sampled.token)) {
        finish(sequence, "stop");
        continue;
      }
      sequence.times.last_token = now;
      sequence.tokens.push_back(sampled.token);
      sequence.logprobs.push_back(sampled.logprob);
      if (static_cast<int>(sequence.tokens.size()) == sequence.prompt_length + sequence.max_new) {
        finish(sequence, "length");
      }
    }
  }
  if (options_.mode == Mode::score) {
    for (const std::int32_t slot : order_) {
      Sequence& sequence = slots_[static_cast<std::size_t>(slot)];
      if (sequence.request < 0 || sequence.cached < sequence.prompt_length) continue;
      sequence.times = {now, now};
      finish(sequence, "length");
    }
  }
  std::erase_if(order_, [this](std::int32_t slot) {
    return slots_[static_cast<std::size_t>(slot)].request < 0;
  });
  return tokens;
}

FinishedRequest& Batcher::finish(Sequence& sequence, const char* reason) {
  FinishedRequest& done = finished_.emplace_back();
  done.request = sequence.request;
  done.times = sequence.times;
  done.result.finish_reason = reason;
  done.result.logprobs = sequence.logprobs;
  if (options_.mode == Mode::generate) {
    done.result.tokens.assign(sequence.tokens.begin() + sequence.prompt_length,
                              sequence.tokens.end());
  } else {
    done.result.tokens = sequence.tokens;
  }
  for (const std::int32_t page : sequence.pages) free_pages_.push_back(page);
  sequence.request = -1;
  return done;
}

/// Ends a sequence whose next logits, or the log-probability made of them, are not finite.
void Batcher::finish_not_finite(Sequence& sequence) {
  const auto known = static_cast<std::int64_t>(sequence.tokens.size());
  // In scoring a log-probability for each position before this one is there.
  const auto position = options_.mode == Mode::score
                            ? static_cast<std::int64_t>(sequence.logprobs.size())
                            : known - 1;
  const std::int64_t generated = position - sequence.prompt_length + 1;
  const std::string where = generated > 0 ? fmt::format("generated token {}", generated)
                                          : fmt::format("token {} of the prompt's {}", position + 1,
                                                        sequence.prompt_length);
  finish(sequence, "error").error = fmt::format(
      "the logits at position {} ({}) are not finite: {}", position, where,
      options_.dtype == DType::float32
          ? "a weight of the model is not finite, or an activation overflowed even float32; see "
            "what atoll inspect says of the model file"
          : fmt::format("an activation overflowed {}, or a weight of the model is not finite; "
                        "where atoll inspect names no such weight, run this request again with "
                        "--dtype float32, with an --output of its own",
                        name_of(options_.dtype)));
}

void refuse_beyond_cache(std::vector<io::Request>& requests, const std::vector<KeptProgress>& kept,
                         const BatchOptions& options, const std::string& sized_by) {
  for (std::size_t i = 0; i < requests.size(); ++i) {
    io::Request& request = requests[i];
    if (!request.error.empty() || kept[i].finished) continue;
    const std::int64_t pages = Batcher::pages_needed(request, options);
    if (pages <= options.num_pages) continue;
    request.error = fmt::format(
        "prompt and new tokens need {} tokens of KV cache, but a rank holds {} ({}); "
        "raise --kv-tokens or shorten the request",
        pages * options.page_tokens, options.num_pages * options.page_tokens, sized_by);
  }
}

}  // namespace atl
