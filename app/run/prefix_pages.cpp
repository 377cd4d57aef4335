#include "app/run/prefix_pages.hpp"

#include <algorithm>
#include <utility>

#include "compute/error.hpp"

namespace atl {

namespace {

/// Fewer tokens in common are computed again: a beginning of sentence is no reason to wait.
constexpr std::int32_t least_shared = 16;
/// Pages behind one beginning that are looked at for the longest common part, the newest first.
constexpr int most_compared = 64;

std::int32_t common_front(std::span<const std::int32_t> a, std::span<const std::int32_t> b) {
  const std::size_t most = std::min(a.size(), b.size());
  return static_cast<std::int32_t>(
      std::mismatch(a.begin(), a.begin() + static_cast<std::ptrdiff_t>(most), b.begin()).first -
      a.begin());
}

std::size_t pages_of(std::int32_t tokens, std::int32_t page_tokens) {
  return static_cast<std::size_t>((tokens + page_tokens - 1) / page_tokens);
}

}  // namespace

PrefixPages::PrefixPages(const BatchOptions& options, CopyRows copy)
    : share_(options.share_prefixes),
      scoring_(options.mode == Mode::score),
      page_tokens_(options.page_tokens),
      copy_(std::move(copy)),
      pool_(options.num_pages) {
  if (!share_) return;
  nodes_.resize(static_cast<std::size_t>(options.num_pages));
  const std::size_t room = nodes_.size() * static_cast<std::size_t>(page_tokens_);
  // Not touched before a page is used: there may be far more than ever are.
  tokens_ = std::make_unique_for_overwrite<std::int32_t[]>(room);
  if (scoring_) logprobs_ = std::make_unique_for_overwrite<float[]>(room);
}

std::span<std::int32_t> PrefixPages::tokens_of(std::int32_t page) {
  return {tokens_.get() + std::ptrdiff_t{page} * page_tokens_,
          static_cast<std::size_t>(node(page).tokens)};
}

std::span<float> PrefixPages::logprobs_of(std::int32_t page) {
  return {logprobs_.get() + std::ptrdiff_t{page} * page_tokens_,
          static_cast<std::size_t>(node(page).tokens)};
}

/// Tokens of the prompt that lie in this one of its pages.
std::span<const std::int32_t> PrefixPages::in_page(const Sequence& sequence,
                                                   std::size_t index) const {
  const auto first = static_cast<std::size_t>(page_tokens_) * index;
  const auto end = std::min(static_cast<std::size_t>(sequence.prompt_length),
                            first + static_cast<std::size_t>(page_tokens_));
  return std::span(sequence.tokens).subspan(first, end - first);
}

std::pair<std::int32_t, std::int32_t> PrefixPages::closest(const PrefixKey& before,
                                                           std::span<const std::int32_t> tokens) {
  std::pair<std::int32_t, std::int32_t> best = {-1, 0};
  const auto found = after_.find(before);
  if (found == after_.end()) return best;
  std::int32_t page = found->second;
  for (int i = 0; i < most_compared && page >= 0; ++i, page = node(page).elder) {
    const std::int32_t common = common_front(tokens_of(page), tokens);
    if (common > best.second) best = {page, common};
  }
  return best;
}

PrefixPages::Match PrefixPages::match(const Sequence& sequence) {
  const auto prompt =
      std::span(sequence.tokens).first(static_cast<std::size_t>(sequence.prompt_length));
  Match found;
  PrefixKey before = no_prefix;
  std::int32_t at = 0;
  for (; at + page_tokens_ <= sequence.prompt_length; at += page_tokens_) {
    const auto tokens =
        prompt.subspan(static_cast<std::size_t>(at), static_cast<std::size_t>(page_tokens_));
    const PrefixKey key = prefix_key(before, tokens);
    const auto page = whole_.find(key);
    if (page == whole_.end() || !std::ranges::equal(tokens_of(page->second), tokens)) break;
    found.pages.push_back(page->second);
    before = key;
  }
  const auto [page, common] = closest(before, prompt.subspan(static_cast<std::size_t>(at)));
  found.rows = rows_of(sequence, found, at + common, page);
  if (found.rows > at || (takes_scores(sequence) && found.rows == at && common > 0)) {
    found.donor = page;
  }
  if (found.pages.empty() && found.rows < least_shared) return {};
  return found;
}

/// What follows the last row is the sequence's own: what is drawn, or in scoring the token of which
/// that row has the log-probability. A continuation is scored by rows of its own.
std::int32_t PrefixPages::rows_of(const Sequence& sequence, const Match& found, std::int32_t common,
                                  std::int32_t next) const {
  const std::int32_t most = std::min(common, sequence.prompt_length - 1);
  if (!scoring_) return most;
  if (!takes_scores(sequence)) return std::min(most, first_scored(sequence) - 1);
  std::int32_t known = 0;  // tokens whose log-probability somebody asks for
  for (const std::int32_t page : found.pages) {
    if (!node(page).scored) return std::max(0, known - 1);
    known += page_tokens_;
  }
  if (next >= 0 && node(next).scored) known = common;
  return std::clamp(known - 1, 0, most);
}

/// A copied page is held as well until the copy is made, which may be one more than was granted.
void PrefixPages::drop_donor_without_room(const Sequence& sequence, Match& found,
                                          std::int64_t count) {
  if (found.donor < 0 || num_free() >= count - std::ssize(found.pages)) return;
  give_back(found.donor);
  found.donor = -1;
  const auto at = static_cast<std::int32_t>(found.pages.size()) * page_tokens_;
  found.rows = std::max(0, std::min(found.rows, at - (takes_scores(sequence) ? 1 : 0)));
}

void PrefixPages::begin(Sequence& sequence, std::int64_t count) {
  if (!share_) return begin_alone(sequence, count);
  Match found = match(sequence);
  for (const std::int32_t page : found.pages) hold(page);
  if (found.donor >= 0) hold(found.donor);
  drop_donor_without_room(sequence, found, count);
  sequence.pages.assign(found.pages.begin(), found.pages.end());
  sequence.shared_pages = static_cast<std::int32_t>(found.pages.size());
  sequence.donor = found.donor;
  sequence.awaited = found.rows;
  while (std::ssize(sequence.pages) < count) sequence.pages.push_back(take());
  enter(sequence);
  join(sequence);
}

void PrefixPages::begin_alone(Sequence& sequence, std::int64_t count) {
  while (std::ssize(sequence.pages) < count) sequence.pages.push_back(take());
  if (share_) enter(sequence);
}

void PrefixPages::enter(const Sequence& sequence) {
  PrefixKey before = no_prefix;
  for (std::size_t i = 0; i < pages_of(sequence.prompt_length, page_tokens_); ++i) {
    const auto tokens = in_page(sequence, i);
    const bool full = std::ssize(tokens) == page_tokens_;
    const PrefixKey key = full ? prefix_key(before, tokens) : no_prefix;
    const bool known =
        full ? whole_.contains(key) : closest(before, tokens).second == std::ssize(tokens);
    if (!known) enter_page(sequence, i, before, key);
    before = key;
  }
}

void PrefixPages::enter_page(const Sequence& sequence, std::size_t index, const PrefixKey& before,
                             const PrefixKey& key) {
  const std::int32_t page = sequence.pages[index];
  const auto tokens = in_page(sequence, index);
  pool_.share(page);
  Node& entered = node(page);
  entered = {};
  entered.before = before;
  entered.key = key;
  entered.tokens = static_cast<std::int32_t>(tokens.size());
  entered.filler = sequence.request;
  entered.scored = takes_scores(sequence);
  std::ranges::copy(tokens, tokens_of(page).begin());
  if (std::ssize(tokens) == page_tokens_) whole_[key] = page;
  const auto [first, fresh] = after_.try_emplace(before, page);
  if (fresh) return;
  entered.elder = std::exchange(first->second, page);
  node(entered.elder).sibling = page;
}

PrefixPages::Progress PrefixPages::progress_of(const Sequence& sequence) const {
  Progress reached;
  std::int32_t known = 0;
  const auto whole = static_cast<std::size_t>(sequence.shared_pages);
  for (std::size_t i = 0; i < whole; ++i) {
    const Node& one = node(sequence.pages[i]);
    reached.rows += one.rows;
    known += one.known;
    if (one.rows == page_tokens_) ++reached.page;
    if (reached.page <= i) break;
  }
  if (reached.page == whole && sequence.donor >= 0) {
    reached.rows += node(sequence.donor).rows;
    known += node(sequence.donor).known;
  }
  if (takes_scores(sequence)) reached.rows = std::min(reached.rows, known - 1);
  return reached;
}

bool PrefixPages::abandoned(const Sequence& sequence, const Progress& reached) const {
  const auto whole = static_cast<std::size_t>(sequence.shared_pages);
  if (reached.page == whole) {
    const std::int32_t donor = sequence.donor;
    return donor < 0 || node(donor).filler < 0;
  }
  // One that computes a later page waits for this one, and goes on with it.
  return std::all_of(sequence.pages.begin() + static_cast<std::ptrdiff_t>(reached.page),
                     sequence.pages.begin() + static_cast<std::ptrdiff_t>(whole),
                     [this](std::int32_t page) {
                       return node(page).filler < 0 || node(page).rows == page_tokens_;
                     });
}

void PrefixPages::join(Sequence& sequence) {
  if (sequence.awaited == 0) return;
  const Progress reached = progress_of(sequence);
  if (reached.rows < sequence.awaited && !abandoned(sequence, reached)) return;
  if (reached.rows < sequence.awaited) adopt(sequence, reached);
  take_rows(sequence, std::clamp(reached.rows, 0, sequence.awaited));
}

/// The sequence computes what nobody does.
void PrefixPages::adopt(Sequence& sequence, const Progress& reached) {
  const auto whole = static_cast<std::size_t>(sequence.shared_pages);
  for (std::size_t i = reached.page; i < whole; ++i) {
    Node& one = node(sequence.pages[i]);
    if (one.rows < page_tokens_) one.filler = sequence.request;
  }
}

void PrefixPages::take_rows(Sequence& sequence, std::int32_t rows) {
  const std::int32_t in_whole = sequence.shared_pages * page_tokens_;
  if (rows > in_whole) {
    copy_(sequence.donor, sequence.pages[static_cast<std::size_t>(sequence.shared_pages)],
          rows - in_whole);
    counts_.rows_copied += rows - in_whole;
  }
  for (std::int32_t token = 1; takes_scores(sequence) && token <= rows; ++token) {
    const std::int32_t page = token < in_whole
                                  ? sequence.pages[static_cast<std::size_t>(token / page_tokens_)]
                                  : sequence.donor;
    sequence.logprobs.push_back(logprobs_of(page)[static_cast<std::size_t>(token % page_tokens_)]);
  }
  if (sequence.donor >= 0) give_back(sequence.donor);
  sequence.donor = -1;
  sequence.awaited = 0;
  sequence.cached = rows;
  counts_.requests += rows > 0 ? 1 : 0;
  counts_.rows_saved += rows;
  landed(sequence);
}

void PrefixPages::landed(Sequence& sequence) {
  if (!share_ || sequence.landed == sequence.prompt_length || sequence.awaited > 0) return;
  std::int32_t rows = std::min(sequence.cached, sequence.prompt_length);
  if (scoring_) {  // up to where numbers were not finite
    const auto scored = static_cast<std::int32_t>(sequence.logprobs.size());
    rows = std::min(rows, first_scored(sequence) - 1 + scored);
  }
  if (rows == sequence.landed) return;
  const auto last = static_cast<std::size_t>(std::min(rows, sequence.prompt_length - 1));
  for (auto i = static_cast<std::size_t>(sequence.landed / page_tokens_);
       i <= last / static_cast<std::size_t>(page_tokens_); ++i) {
    const std::int32_t page = sequence.pages[i];
    Node& one = node(page);
    // What nobody fills any more, one that goes on from there may have.
    if (one.tokens == 0 || (one.filler >= 0 && one.filler != sequence.request)) continue;
    const auto first = static_cast<std::int32_t>(i) * page_tokens_;
    one.rows = std::clamp(rows - first, one.rows, one.tokens);
    if (!one.scored || !takes_scores(sequence)) continue;
    const std::int32_t known = std::clamp(rows + 1 - first, one.known, one.tokens);
    for (; one.known < known; ++one.known) {
      const std::int32_t token = first + one.known;
      if (token == 0) continue;  // nothing comes before it
      logprobs_of(page)[static_cast<std::size_t>(one.known)] =
          sequence.logprobs[static_cast<std::size_t>(token - 1)];
    }
  }
  sequence.landed = rows;
}

void PrefixPages::release(Sequence& sequence) {
  landed(sequence);
  // The first pages of a beginning are of use to more than its last ones.
  for (auto page = sequence.pages.rbegin(); page != sequence.pages.rend(); ++page) {
    if (share_ && node(*page).tokens > 0 && node(*page).filler == sequence.request) {
      node(*page).filler = -1;
      if (node(*page).rows == 0 && pool_.holders(*page) == 2) leave(*page);  // nobody waits for it
    }
    give_back(*page);
  }
}

void PrefixPages::forget() {
  for (std::size_t page = 0; page < nodes_.size(); ++page) {
    if (nodes_[page].tokens > 0) leave(static_cast<std::int32_t>(page));
  }
}

std::int32_t PrefixPages::take() {
  if (pool_.num_free() == 0 && oldest_unused_ >= 0) {
    ++counts_.pages_dropped;
    leave(oldest_unused_);
  }
  return pool_.take();
}

void PrefixPages::hold(std::int32_t page) {
  pool_.share(page);
  if (node(page).unused) unlink_unused(page);
}

void PrefixPages::give_back(std::int32_t page) {
  pool_.give_back(page);
  if (share_ && node(page).tokens > 0 && pool_.holders(page) == 1) link_unused(page);
}

/// Nobody finds the page any more; it is free once no sequence holds it.
void PrefixPages::leave(std::int32_t page) {
  Node& left = node(page);
  if (left.unused) unlink_unused(page);
  if (left.tokens == page_tokens_) whole_.erase(left.key);
  if (left.elder >= 0) node(left.elder).sibling = left.sibling;
  if (left.sibling >= 0) {
    node(left.sibling).elder = left.elder;
  } else if (left.elder >= 0) {
    after_[left.before] = left.elder;
  } else {
    after_.erase(left.before);
  }
  left = {};
  pool_.give_back(page);
}

void PrefixPages::link_unused(std::int32_t page) {
  Node& one = node(page);
  one.unused = true;
  one.newer = -1;
  one.older = newest_unused_;
  (newest_unused_ >= 0 ? node(newest_unused_).newer : oldest_unused_) = page;
  newest_unused_ = page;
  ++num_unused_;
}

void PrefixPages::unlink_unused(std::int32_t page) {
  Node& one = node(page);
  (one.newer >= 0 ? node(one.newer).older : newest_unused_) = one.older;
  (one.older >= 0 ? node(one.older).newer : oldest_unused_) = one.newer;
  one.unused = false;
  one.newer = one.older = -1;
  --num_unused_;
}

}  // namespace atl
