#include "app/run/prompt_lookup.hpp"

#include <algorithm>
#include <bit>
#include <cstddef>

namespace atl {

namespace {

/// Tokens that have to stand there again.
constexpr std::int32_t context = 3;
/// The first guess is a small one: most texts that seem to repeat themselves do not go on so.
constexpr int first_at_once = 2;
constexpr std::int64_t most_slots = std::int64_t{1} << 16;
/// So many guesses in a row that were all wrong make a pause, twice as long from time to time.
constexpr int patience = 3;
constexpr int shortest_pause = 8;
constexpr int most_doublings = 5;

}  // namespace

PromptLookup::PromptLookup(int most, std::int64_t longest) : most_(most) {
  if (most_ == 0) return;
  const auto slots = std::min(most_slots, std::max<std::int64_t>(16, 2 * longest));
  after_.resize(std::bit_ceil(static_cast<std::size_t>(slots)));
}

void PromptLookup::begin() {
  std::ranges::fill(after_, 0);
  learnt_ = 0;
  at_once_ = std::min(first_at_once, most_);
  misses_ = 0;
  pause_ = 0;
}

/// Of the tokens before `end`.
std::uint32_t PromptLookup::slot_of(std::span<const std::int32_t> tokens, std::int32_t end) const {
  std::uint32_t hash = 0;
  for (std::int32_t i = end - context; i < end; ++i) {
    hash = (hash ^ static_cast<std::uint32_t>(tokens[static_cast<std::size_t>(i)])) * 0x9e3779b1U;
    hash ^= hash >> 15;
  }
  return hash & static_cast<std::uint32_t>(after_.size() - 1);
}

void PromptLookup::learn(std::span<const std::int32_t> tokens) {
  const auto length = static_cast<std::int32_t>(tokens.size());
  for (std::int32_t at = std::max(learnt_, context); at < length; ++at) {
    after_[slot_of(tokens, at)] = at;
  }
  learnt_ = length;
}

void PromptLookup::propose(std::span<const std::int32_t> tokens, int room,
                           std::vector<std::int32_t>& proposed) {
  const auto length = static_cast<std::int32_t>(tokens.size());
  if (most_ == 0 || length <= context) return;
  learn(tokens);
  if (pause_ > 0) {
    --pause_;
    return;
  }
  const std::int32_t at = after_[slot_of(tokens, length)];
  const auto last = tokens.last(context);
  if (at < context ||
      !std::ranges::equal(tokens.subspan(static_cast<std::size_t>(at - context), context), last)) {
    return;
  }
  for (int i = 0; i < std::min(room, at_once_); ++i) {
    const auto next = static_cast<std::size_t>(at + i);
    // What repeats itself without an end goes on in what is proposed.
    proposed.push_back(next < tokens.size() ? tokens[next] : proposed[next - tokens.size()]);
  }
}

void PromptLookup::judge(int proposed, int accepted) {
  if (proposed == 0) return;
  if (accepted > 0) {
    misses_ = 0;
    at_once_ = accepted == proposed ? std::min(most_, 2 * at_once_) : accepted + 1;
    return;
  }
  at_once_ = std::max(1, at_once_ / 2);
  if (++misses_ >= patience) {
    pause_ = shortest_pause << std::min(misses_ - patience, most_doublings);
  }
}

}  // namespace atl
