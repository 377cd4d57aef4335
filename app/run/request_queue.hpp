#pragma once
// The requests that wait, on rank 0: which rank takes which, while more of them are still read.

#include <cstdint>
#include <functional>
#include <iterator>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "app/plan/admission.hpp"
#include "app/run/admitted.hpp"
#include "app/run/batch_options.hpp"
#include "app/run/kept_progress.hpp"
#include "app/run/prefix_homes.hpp"
#include "app/run/request_list.hpp"

namespace atl {

class RequestQueue {
 public:
  /// Waits for more requests at the end of the list; false when that was all.
  using More = std::function<bool()>;

  /// `requests` and `kept` stay the caller's and outlive this. `kept` has an entry for each of the
  /// first requests: those that were under way go first. Requests that need more KV cache than a
  /// rank has are refused; `sized_by` says what gave the cache its size.
  RequestQueue(RequestList& requests, std::span<const KeptProgress> kept,
               const BatchOptions& options, const std::string& sized_by, More more = {});

  /// Requests beyond `line` of the input wait.
  void hold_after(std::int64_t line) { last_line_ = line; }
  bool held_back() const;
  /// The first line of the input of which a request waits; the largest number where none does.
  std::int64_t oldest_line() const;
  /// KV pages that the request that is next takes of some rank at least; 0 when none of those read
  /// waits, or it is held back.
  std::int64_t next_pages();
  /// Waits until there is a next one; false when there will be none.
  bool wait_for_next();

  struct Grant {
    int rank = 0;
    Admitted admitted;
  };
  /// Gives requests to ranks until the next one fits nowhere, `most` at most, and adds them to the
  /// ranks' loads. Those that no run has begun stay where admits_new() says so.
  std::vector<Grant> grant(std::span<RankLoad> loads,
                           std::int64_t most = std::numeric_limits<std::int64_t>::max());

  /// Requests of which the results have come: their ranks have room again.
  void finished(std::span<const std::int32_t> requests);

  /// Whether the line of the next one, or of one behind it, has others that were given out.
  bool line_begun() const;

  /// Notes which requests were read since the last call.
  void take_new();

  /// Tokens of the waiting requests that have been read, of prompts and still to generate.
  std::int64_t work() const { return admission_.work() + later_work_; }
  /// The same of all requests that ever waited.
  std::int64_t total_work() const { return total_work_; }
  /// How many requests have been read and no rank has taken.
  std::int64_t num_waiting() const { return std::ssize(admission_.waiting()) + num_later_; }
  /// Those of them that no run has begun.
  std::vector<std::int32_t> pending() const;
  /// The others, which were under way when the run began; they go first.
  std::vector<std::int32_t> resumed() const;
  std::int32_t num_resumed() const;

 private:
  KeptProgress kept_of(std::size_t request) const;
  WaitingRequest waiting_of(std::size_t request) const;
  std::int64_t line_of(std::int32_t request) const;
  /// Whether it waits behind those that admission knows, were it read.
  bool waits(std::size_t request) const;
  /// Lets admission know the next ones.
  void fill();
  /// Says which will be given next, as far as they are to be held.
  void foresee();
  /// Whether a request waits, and may be given out.
  bool has_next() const { return !admission_.waiting().empty() && !held_back(); }
  /// Whether it takes what others computed of its prompt, and they of its.
  bool shares(const WaitingRequest& request) const;
  /// What ranks have of the next one's prompt, into held_.
  void find_held(std::size_t num_ranks);

  RequestList& requests_;
  std::span<const KeptProgress> kept_;
  BatchOptions options_;
  std::string sized_by_;
  More more_;
  std::size_t seen_ = 0;         // requests
  std::size_t known_ = 0;        // of these, the first, from which admission has those that wait
  std::int64_t num_later_ = 0;   // requests behind them that wait
  std::int64_t later_work_ = 0;  // their tokens
  std::size_t begun_until_ = 0;  // requests: where the last line ends of which one was given out
  std::size_t foreseen_ = 0;     // of admission's: the first
  std::int64_t foreseen_tokens_ = 0;
  std::int64_t last_line_ = std::numeric_limits<std::int64_t>::max();
  std::int64_t total_work_ = 0;
  Admission admission_;
  std::size_t num_ranks_ = 0;  // of the last grants
  PrefixHomes homes_;
  std::int32_t keys_of_ = -1;     // the request, of
  std::vector<PrefixKey> keys_;   // its prompt's
  std::vector<HeldPrefix> held_;  // [ranks]; empty: nothing is shared
};

}  // namespace atl
