#pragma once
// Which route a pass takes and into how many chunks it is cut, where the options leave that open:
// first by an estimate from what links carry and arithmetic takes, then by what passes took.

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "app/plan/phase.hpp"
#include "app/plan/schedule.hpp"

namespace atl {

/// One way to run a pass.
struct PassWay {
  Route route = Route::flat;
  int chunks = 1;
  bool operator==(const PassWay&) const = default;
};

struct PassSize {
  Phase phase = Phase::prefill;
  std::int64_t rows = 0;  ///< tokens of the rank that has most
};

/// What links carry, as comm::LinkSpeed says; seconds and bytes per second.
struct PassLink {
  double latency_s = 0;
  double node_bytes_per_s = 0;
};

/// What the estimate knows before the first pass; alike on all ranks.
struct PassFacts {
  std::vector<Route> routes;      ///< that passes may take
  std::vector<int> chunk_counts;  ///< that passes may be cut into, rising
  int min_chunk_tokens = 1;
  std::int64_t most_chunk_tokens = 0;  ///< that a chunk has room for
  int num_ranks = 1;
  int num_nodes = 1;
  int ranks_of_node = 1;  ///< of the largest
  int num_experts = 1;
  int top_k = 1;
  int moe_layers = 1;
  std::int64_t row_bytes = 0;
  std::int64_t across_row_bytes = 0;
  PassLink inside, between;
  /// Rows of a matrix at which multiplying takes as long as reading it from memory.
  double balance_rows = 12;
  double guessed_s_per_row = 0;  ///< of arithmetic in a pass, until one has been measured
};

/// What the last pass took on the rank that decides.
struct PassCost {
  double seconds = 0;          ///< from the agreement before it to the one after
  double compute_seconds = 0;  ///< arithmetic was under way
  // Rows that this rank's tokens sent to other nodes: by Route::flat, once for each node, and
  // those that come back by Route::nodes. Of all passes so far.
  std::int64_t flat_rows = 0;
  std::int64_t node_rows = 0;
  std::int64_t node_returns = 0;
  std::int64_t routed_tokens = 0;  ///< tokens times MoE layers behind these
};

/// What was chosen for passes of one size, for the report.
struct PassRecord {
  Phase phase = Phase::prefill;
  std::int64_t least_rows = 0;  ///< up to twice as many, less one
  PassWay way;
  double estimate_s = 0;  ///< of a pass, when its size first came
  double best_s_per_row = 0;
  std::int64_t passes = 0;
};

/// Alike on all ranks, which feed it the same numbers: the deciding rank's. Passes of nearly equal
/// size (within a factor of two) are decided together. The best estimates are tried in turn, then
/// neighbours of the best while they are better, and the fastest is kept; ever more seldom the
/// second is tried again.
class PassChoices {
 public:
  explicit PassChoices(PassFacts facts);

  /// The way of the pass that comes now. `last` is what the one before took.
  PassWay next(const PassSize& size, const PassCost& last);

  /// Seconds that a pass would take.
  double estimate(const PassSize& size, const PassWay& way) const;

  const PassFacts& facts() const { return facts_; }
  /// One for each size and way that was taken.
  std::vector<PassRecord> records() const;

 private:
  struct Candidate {
    PassWay way;
    double estimate = 0;
    double best = 0;  // seconds per row, 0: not known
    double last_per_row = 0;
    double tried_s = 0;
    std::int64_t passes = 0;  // whose time is known
    std::int64_t taken = 0;
    bool settled = false;  // tried often enough
  };
  /// Passes after which the second is tried again for the first time.
  static constexpr std::int64_t trial_again = 32;
  struct Bucket {
    Phase phase{};
    std::int64_t least_rows = 0;
    std::vector<Candidate> candidates;
    std::int64_t passes = 0;
    std::int64_t next_trial = trial_again;
    bool guessed = false;  // when the candidates were chosen, arithmetic had not been measured
  };

  void learn(const PassCost& last);
  bool is_behind(const Candidate& candidate) const;
  Bucket& bucket_of(const PassSize& size);
  void choose_candidates(Bucket& bucket, const PassSize& size) const;
  bool measured(Phase phase) const {
    return computed_[static_cast<std::size_t>(phase)].seconds > 0;
  }
  Candidate& take(Bucket& bucket);
  Candidate* untried_neighbour(Bucket& bucket) const;
  bool is_worth_a_trial(const Bucket& bucket, const PassWay& way, const PassWay& beside) const;
  std::vector<PassWay> ways_of(const PassSize& size) const;
  PassWay fitted(PassWay way, const PassSize& size) const;
  bool fits(int chunks, const PassSize& size) const;
  double message_seconds(const PassSize& size, const PassWay& way) const;
  double compute_seconds(const PassSize& size, int chunks) const;

  PassFacts facts_;
  std::vector<Bucket> buckets_;
  // Rows to and from other nodes per token and layer.
  double flat_rows_ = 0, node_rows_ = 0, node_returns_ = 0;
  struct Computed {  // the last pass of a phase
    double seconds = 0;
    double rows = 1;
    int chunks = 1;
  };
  Computed computed_[2];
  std::array<std::int64_t, num_routes> passes_by_route_{};
  Bucket* last_bucket_ = nullptr;
  Candidate* last_ = nullptr;
  PassSize last_size_;
  int last_chunks_ = 1;
};

}  // namespace atl
