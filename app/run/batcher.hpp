#pragma once
// Requests -> sequences on ranks -> the tokens of each pass -> results.
//
// Every rank runs the same Batcher over the same requests and hears the other ranks' load once per
// pass, so all ranks come to the same decisions without a coordinator.

#include <cstdint>
#include <span>
#include <vector>

#include "app/plan/admission.hpp"
#include "app/run/batch_options.hpp"
#include "app/run/finished_request.hpp"
#include "app/run/kept_progress.hpp"
#include "app/run/page_pool.hpp"
#include "app/run/pass.hpp"
#include "app/run/pass_tokens.hpp"
#include "app/run/sequences.hpp"
#include "io/requests.hpp"

namespace atl {

class Batcher {
 public:
  /// `progress` is empty, or has an entry for each request; requests that were under way go first
  /// and are fetched by `restore` when this rank takes them up.
  Batcher(const std::vector<io::Request>& requests, const BatchOptions& options, int rank,
          std::vector<KeptProgress> progress = {}, Restore restore = {});

  RankLoad load() const;

  /// Takes all ranks' loads, gives waiting requests to ranks, and cuts this rank's part of the next
  /// pass into chunks. False when no rank has anything left to do.
  bool next_pass(std::span<const RankLoad> loads);

  /// The same in two steps, where the caller decides how many chunks there are.
  bool admit(std::span<const RankLoad> loads);
  std::int64_t most_rows() const { return most_rows_; }  ///< of a rank, in the pass admitted
  void cut(int num_chunks) { pass_.build(sequences_, num_chunks); }

  /// Tokens of requests that no rank has taken yet, of prompts and still to generate.
  std::int64_t waiting_work() const { return admission_.work(); }

  int num_chunks() const { return pass_.num_chunks(); }   ///< of this pass, equal on all ranks
  bool has_prompt_tokens() const { return has_prompt_; }  ///< on any rank in this pass
  ChunkBatch& chunk(int index) { return pass_.chunk(index); }
  SamplingRequest sampling_of(const HeadRow& head) const;

  /// Sequences under way on this rank, between two passes.
  const Sequences& sequences() const { return sequences_; }
  /// KV pages of a sequence under way on this rank; empty when it is not, or no longer.
  std::span<const std::int32_t> pages_of(std::int32_t request) const;
  /// Requests that no rank has taken yet.
  std::span<const WaitingRequest> waiting() const { return admission_.waiting(); }
  /// Whether one of these was under way when this run began.
  bool restoring() const { return admission_.resuming(); }

  /// Takes the head steps' outcome; `now` in seconds since the job's first pass. A sequence ends
  /// with an error at the first position where its logits are not finite; the others go on.
  PassTokens finish_pass(double now);

  /// Requests this rank has finished, in order of completion; the caller may take them away.
  std::vector<FinishedRequest>& finished() { return finished_; }

 private:
  void start(std::int32_t request);
  void restore(Sequence& sequence);
  void take_sampled(Sequence& sequence, const SampledToken& sampled, double now);
  FinishedRequest& finish(Sequence& sequence, const char* reason);
  void finish_scored(double now);
  bool is_stop(const Sequence& sequence, std::int32_t token) const;
  const io::Request& request_of(const Sequence& sequence) const {
    return requests_[static_cast<std::size_t>(sequence.request)];
  }

  const std::vector<io::Request>& requests_;
  BatchOptions options_;
  int rank_;
  std::vector<KeptProgress> progress_;  // [requests]
  Restore restore_;
  Admission admission_;
  PagePool pages_;
  Sequences sequences_;
  Pass pass_;
  std::vector<RankLoad> loads_;
  std::vector<FinishedRequest> finished_;
  bool has_prompt_ = false;
  std::int64_t most_rows_ = 0;
};

}  // namespace atl
