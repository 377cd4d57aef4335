#pragma once
// The KV pages of a rank, and which beginnings of prompts lie in them, so that each is computed
// once.
//
// Whole pages of a beginning are held by all sequences that have it; of the page in which a prompt
// goes another way its sequence gets a copy. A beginning is there from the moment in which the
// first sequence takes its pages: others wait until that one has computed them. Pages of prompts
// that ended stay until their room is needed, the longest unused first.

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "app/run/batch_options.hpp"
#include "app/run/page_pool.hpp"
#include "app/run/prefix_key.hpp"
#include "app/run/sequences.hpp"

namespace atl {

/// Copies keys and values of the first `rows` positions of a page to another, in all layers.
using CopyRows = std::function<void(std::int32_t from, std::int32_t to, std::int32_t rows)>;

/// What shared beginnings did, on one owner.
struct PrefixCounts {
  std::int64_t requests = 0;       ///< that took a beginning which others had computed
  std::int64_t rows_saved = 0;     ///< tokens of prompts that were not computed again
  std::int64_t rows_copied = 0;    ///< of these, to pages of their own
  std::int64_t rows_computed = 0;  ///< tokens of prompts that were
  std::int64_t pages_dropped = 0;  ///< to make room
};

class PrefixPages {
 public:
  /// All pages are free. Without options.share_prefixes every sequence has its own.
  explicit PrefixPages(const BatchOptions& options, CopyRows copy = {});

  /// Pages that sequences may take: free, or of beginnings that no sequence holds.
  std::int64_t num_free() const { return pool_.num_free() + num_unused_; }

  /// Gives a sequence that begins its pages, `count` in all, of which others may hold the first.
  /// Where these are still being computed, it waits (Sequence::awaited). Throws Error when there
  /// are not enough.
  void begin(Sequence& sequence, std::int64_t count);
  /// The same without anything shared: what an earlier run kept goes into its pages.
  void begin_alone(Sequence& sequence, std::int64_t count);
  /// A sequence that waits takes what it waited for, once that is computed. What the one that
  /// computed it left undone when it ended, another goes on with.
  void join(Sequence& sequence);
  /// Notes how much of a sequence's prompt is computed, and the log-probabilities of its tokens.
  void landed(Sequence& sequence);
  /// A sequence ends, and gives its pages back.
  void release(Sequence& sequence);
  /// Other weights compute from now on: of the beginnings nothing is kept.
  void forget();

  const PrefixCounts& counts() const { return counts_; }
  void count_computed(std::int64_t rows) { counts_.rows_computed += rows; }

 private:
  /// A page with the next tokens of a beginning.
  struct Node {
    PrefixKey before;          // of what lies in the pages before it
    PrefixKey key;             // with this page's tokens, where it is full of them
    std::int32_t tokens = 0;   // of prompts; 0: nobody looks for this page
    std::int32_t rows = 0;     // of these, computed
    std::int32_t known = 0;    // scoring: of these, those whose log-probability is
    bool scored = false;       // its filler asks for them all
    std::int32_t filler = -1;  // request that computes them; -1: none
    // Others that follow the same beginning, and in order of use those that nothing holds.
    std::int32_t sibling = -1, elder = -1;
    std::int32_t newer = -1, older = -1;
    bool unused = false;
  };
  /// What a prompt has in common with those before it.
  struct Match {
    std::vector<std::int32_t> pages;  // whole ones
    std::int32_t donor = -1;          // page with the first of the next tokens
    std::int32_t rows = 0;            // that need not be computed
  };
  /// How far the beginning that a sequence waits for is computed.
  struct Progress {
    std::int32_t rows = 0;
    std::size_t page = 0;  // the first that is not, index into its pages
  };

  Node& node(std::int32_t page) { return nodes_[static_cast<std::size_t>(page)]; }
  const Node& node(std::int32_t page) const { return nodes_[static_cast<std::size_t>(page)]; }
  std::span<std::int32_t> tokens_of(std::int32_t page);
  std::span<float> logprobs_of(std::int32_t page);
  std::span<const std::int32_t> in_page(const Sequence& sequence, std::size_t index) const;

  Match match(const Sequence& sequence);
  /// Rows that a sequence takes of `common` tokens, of which the first `at` lie in found.pages, the
  /// rest in page `next`.
  std::int32_t rows_of(const Sequence& sequence, const Match& found, std::int32_t common,
                       std::int32_t next) const;
  /// Whether a sequence takes log-probabilities with the rows: where it wants those of all tokens.
  bool takes_scores(const Sequence& sequence) const {
    return scoring_ && !sequence.asked.is_continuation();
  }
  /// In scoring: the first token whose log-probability is wanted.
  static std::int32_t first_scored(const Sequence& sequence) {
    return std::max(1, static_cast<std::int32_t>(sequence.asked.scored_from));
  }
  /// Of pages that follow a beginning the one with most of these tokens in front: with how many.
  std::pair<std::int32_t, std::int32_t> closest(const PrefixKey& before,
                                                std::span<const std::int32_t> tokens);
  void drop_donor_without_room(const Sequence& sequence, Match& found, std::int64_t count);
  void enter(const Sequence& sequence);
  void enter_page(const Sequence& sequence, std::size_t index, const PrefixKey& before,
                  const PrefixKey& key);
  Progress progress_of(const Sequence& sequence) const;
  /// Of what a waiting sequence waits for, whether nobody computes it.
  bool abandoned(const Sequence& sequence, const Progress& reached) const;
  void adopt(Sequence& sequence, const Progress& reached);
  void take_rows(Sequence& sequence, std::int32_t rows);
  std::int32_t take();
  void hold(std::int32_t page);
  void give_back(std::int32_t page);
  void leave(std::int32_t page);
  void link_unused(std::int32_t page);
  void unlink_unused(std::int32_t page);

  const bool share_;
  const bool scoring_;
  const std::int32_t page_tokens_;
  CopyRows copy_;
  PagePool pool_;
  std::vector<Node> nodes_;                 // [pages]
  std::unique_ptr<std::int32_t[]> tokens_;  // [pages, page_tokens]
  std::unique_ptr<float[]> logprobs_;       // the same, of these tokens; scoring
  std::unordered_map<PrefixKey, std::int32_t, PrefixKeyHash> whole_;  // by Node::key
  std::unordered_map<PrefixKey, std::int32_t, PrefixKeyHash> after_;  // by before: the newest
  std::int32_t newest_unused_ = -1, oldest_unused_ = -1;
  std::int64_t num_unused_ = 0;
  PrefixCounts counts_;
};

}  // namespace atl
