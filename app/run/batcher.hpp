#pragma once
// Requests -> sequences on ranks -> the tokens of each pass -> results.
//
// Rank 0 alone has all requests and says who takes which; every rank runs a Batcher over its own
// and hears the other ranks' load once per pass, so that all cut the pass alike.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "app/plan/rank_load.hpp"
#include "app/run/admitted.hpp"
#include "app/run/batch_options.hpp"
#include "app/run/finished_request.hpp"
#include "app/run/kept_progress.hpp"
#include "app/run/pass.hpp"
#include "app/run/pass_tokens.hpp"
#include "app/run/prefix_pages.hpp"
#include "app/run/sequences.hpp"
#include "io/requests.hpp"

namespace atl {

/// A row of a pass that was guessed, and wrongly.
struct RejectedRow {
  int chunk = 0;
  std::int32_t row = 0;
};

class Batcher {
 public:
  /// `restore` fetches what was kept of requests that were under way when the run began. Batchers
  /// of one rank may share their KV pages.
  Batcher(const BatchOptions& options, const SequenceRoom& room, Restore restore = {},
          std::shared_ptr<PrefixPages> pages = nullptr);

  /// From now on these weights compute, and results name them: those with which their request
  /// began, and with commas all that followed until it ended. Never called: results name none.
  void begin_weights(const std::string& name);

  RankLoad load() const;

  /// Before load(): sequences that wait for the beginning of their prompt take what is computed of
  /// it.
  void take_shared();
  /// Before load(): tokens that sequences may generate next are proposed, to go through the layers
  /// in the same pass as the one before them.
  void look_ahead();
  const SpeculationCounts& speculation() const { return speculation_; }
  /// Of the pass whose outcome was taken last.
  std::span<const RejectedRow> rejected() const { return rejected_; }

  /// This rank takes up a request. Throws Error where it has no room for it. `forced`: the tokens
  /// that it generates, whatever the model would.
  void take_up(Admitted admitted, std::vector<std::int32_t> forced = {});

  /// Takes all ranks' loads, with what they have taken up, and cuts this rank's part of the next
  /// pass into chunks. False when no rank has anything left to do.
  bool next_pass(std::span<const RankLoad> loads);

  /// The same in two steps, where the caller decides how many chunks there are.
  bool size_up(std::span<const RankLoad> loads);
  std::int64_t most_rows() const { return most_rows_; }  ///< of a rank, in the next pass
  void cut(int num_chunks) { pass_.build(sequences_, num_chunks); }

  Mode mode() const { return options_.mode; }
  int num_chunks() const { return pass_.num_chunks(); }   ///< of this pass, equal on all ranks
  bool has_prompt_tokens() const { return has_prompt_; }  ///< on any rank in this pass
  ChunkBatch& chunk(int index) { return pass_.chunk(index); }
  /// How the token after a head row is drawn, but for the changes, which are apart.
  SamplingRequest sampling_of(const HeadRow& head) const;
  std::span<const LogitChange> changes_of(const HeadRow& head) const {
    if (head.target >= 0) return {};
    return sequences_.in_slot(head.slot).changes.all();
  }

  /// Sequences under way on this rank, between two passes.
  const Sequences& sequences() const { return sequences_; }
  /// KV pages of a sequence under way on this rank; empty when it is not, or no longer.
  std::span<const std::int32_t> pages_of(std::int32_t request) const;
  /// Takes the head steps' outcome; `now` in seconds since the job's first pass. A sequence ends
  /// with an error at the first position where its logits are not finite; the others go on.
  PassTokens finish_pass(double now);

  /// Requests this rank has finished, in order of completion; the caller may take them away.
  std::vector<FinishedRequest>& finished() { return finished_; }

 private:
  void restore(Sequence& sequence, std::int32_t cached);
  /// A token was generated, in this run or an earlier one. True where a text now ends the result.
  bool grow(Sequence& sequence, std::int32_t token) const;
  /// `sampled`: the token, then the most probable ones that were asked for.
  void take_sampled(Sequence& sequence, std::span<const SampledToken> sampled, double now);
  FinishedRequest& finish(Sequence& sequence, const char* reason);
  void finish_scored(double now);
  /// Those that generate nothing, once their prompt is computed.
  void finish_empty(double now);
  void judge_proposals();
  bool is_stop(const Sequence& sequence, std::int32_t token) const;
  std::string weights_of(const Sequence& sequence) const;

  BatchOptions options_;
  Restore restore_;
  std::shared_ptr<PrefixPages> pages_;
  Sequences sequences_;
  Pass pass_;
  std::vector<FinishedRequest> finished_;
  std::vector<std::string> weights_;  // names, in order
  SpeculationCounts speculation_;
  std::vector<RejectedRow> rejected_;
  bool has_prompt_ = false;
  std::int64_t most_rows_ = 0;
};

}  // namespace atl
