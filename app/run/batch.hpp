#pragma once
// Requests -> sequences on ranks -> the tokens of each pass -> results.
//
// Every rank runs the same Batcher over the same requests and hears the other ranks' load once per
// pass, so all ranks come to the same decisions without a coordinator.

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "app/run/timeline.hpp"
#include "compute/backend.hpp"
#include "io/requests.hpp"

namespace atl {

enum class Mode : std::uint8_t { generate, score };

struct BatchOptions {
  Mode mode = Mode::generate;
  int max_tokens = 64;         ///< for requests that name none
  int max_sequences = 64;      ///< at once on one rank
  int max_pass_tokens = 2048;  ///< of one rank in one pass
  int min_chunk_tokens = 32;   ///< fewer tokens than this are not cut further
  int max_chunks = 1;
  int page_tokens = 64;
  std::int64_t num_pages = 0;                ///< KV pages of this rank
  std::vector<std::int32_t> stop_token_ids;  ///< of the model
  DType dtype = DType::bfloat16;             ///< of the activations, for messages
};

/// What a rank tells the others before each pass.
struct RankLoad {
  std::int64_t prompt_tokens = 0;   ///< of its sequences, not yet processed
  std::int64_t remaining_work = 0;  ///< prompt tokens plus tokens it may still generate
  std::int64_t free_pages = 0;
  std::int32_t decoding = 0;  ///< sequences that generate
  std::int32_t free_sequences = 0;
  std::int32_t stop_signal = 0;   ///< that this rank was sent; 0: none
  std::int32_t checkpoint = 0;    ///< a CheckpointPhase
  std::int64_t result_bytes = 0;  ///< of requests finished since the last pass, for rank 0
};

/// How far a request had come when this run began.
struct KeptProgress {
  bool finished = false;       ///< nothing is left to do
  std::int32_t cached = 0;     ///< tokens whose keys and values are kept
  std::int32_t generated = 0;  ///< tokens
};

/// The rest of what is kept of a request that was under way.
struct SavedSequence {
  std::vector<std::int32_t> generated;
  std::vector<float> logprobs;
};
/// Fetches what is kept of a request; its keys and values go into these pages of this rank.
using Restore =
    std::function<SavedSequence(std::int32_t request, std::span<const std::int32_t> pages)>;

/// A row of a chunk whose logits are wanted, and for whom.
struct HeadRow {
  std::int32_t row = 0;
  std::int32_t slot = 0;     ///< sequence
  std::int32_t target = -1;  ///< score: the id whose log-probability is wanted
};

/// This rank's tokens of one chunk of one pass.
struct ChunkBatch {
  std::vector<std::int32_t> tokens;        ///< [T]
  std::vector<compute::Segment> segments;  ///< cover the rows in order
  std::vector<std::int32_t> requests;      ///< [segments], whose tokens they are
  std::vector<HeadRow> head;
  std::vector<SampledToken> sampled;  ///< generate: [head], filled by the head step
  std::vector<float> logprobs;        ///< score: [head], filled by the head step
  /// Whether the logits of a head row were finite; after the head step.
  bool finite(std::size_t head_row) const;
  void clear();
};

/// When things happened to one request, in seconds since the job's first pass.
struct RequestTimes {
  double first_token = 0;
  double last_token = 0;
};

struct FinishedRequest {
  std::int32_t request = 0;  ///< index into the requests
  io::Result result;
  RequestTimes times;
  std::string error;  ///< set: the request has no result, for this reason
};

class Batcher {
 public:
  /// `progress` is empty, or has an entry for each request; requests that were under way go first
  /// and are fetched by `restore` when this rank takes them up.
  Batcher(const std::vector<io::Request>& requests, const BatchOptions& options, int rank,
          std::vector<KeptProgress> progress = {}, Restore restore = {});

  /// KV pages that a request needs for its whole life.
  static std::int64_t pages_needed(const io::Request& request, const BatchOptions& options);

  RankLoad load() const;

  /// Takes all ranks' loads, gives waiting requests to ranks, and cuts this rank's part of the next
  /// pass into chunks. False when no rank has anything left to do.
  bool next_pass(std::span<const RankLoad> loads);

  /// Tokens of requests that no rank has taken yet, of prompts and still to generate.
  std::int64_t waiting_work() const { return waiting_work_; }

  int num_chunks() const { return num_chunks_; }          ///< of this pass, equal on all ranks
  bool has_prompt_tokens() const { return has_prompt_; }  ///< on any rank in this pass
  ChunkBatch& chunk(int index) { return chunks_[static_cast<std::size_t>(index)]; }
  SamplingRequest sampling_of(const HeadRow& head) const;

  /// A sequence under way on this rank, between two passes.
  struct View {
    std::int32_t request = 0;
    std::int32_t cached = 0;                  ///< tokens whose keys and values are in the cache
    std::span<const std::int32_t> generated;  ///< tokens
    std::span<const float> logprobs;
    std::span<const std::int32_t> pages;
  };
  std::vector<View> sequences() const;
  /// KV pages of a sequence under way on this rank; empty when it is not, or no longer.
  std::span<const std::int32_t> pages_of(std::int32_t request) const;
  /// Requests that no rank has taken yet.
  std::span<const std::int32_t> waiting() const { return std::span(queue_).subspan(next_); }
  /// Whether one of these was under way when this run began.
  bool restoring() const;

  /// Takes the head steps' outcome; `now` in seconds since the job's first pass. A sequence ends
  /// with an error at the first position where its logits are not finite; the others go on.
  PassTokens finish_pass(double now);

  /// Requests this rank has finished, in order of completion; the caller may take them away.
  std::vector<FinishedRequest>& finished() { return finished_; }

 private:
  struct Sequence {
    std::int32_t request = -1;         // -1: slot is free
    std::vector<std::int32_t> tokens;  // prompt, then generated
    std::vector<std::int32_t> pages;
    std::int32_t prompt_length = 0;
    std::int32_t cached = 0;  // tokens whose keys and values are in the cache
    std::int32_t max_new = 0;
    std::vector<float> logprobs;
    RequestTimes times;
    bool prefilling() const { return cached < prompt_length; }
  };

  void admit(std::span<RankLoad> loads);
  void start(std::int32_t request);
  void restore(Sequence& sequence);
  std::int64_t prompt_left(std::size_t request) const;  // tokens of a waiting request's prompt
  std::int64_t work_left(std::size_t request) const;    // and at most still to generate
  void fill_pass();
  void add_piece(std::int32_t slot, std::int32_t count, std::int64_t pass_tokens);
  FinishedRequest& finish(Sequence& sequence, const char* reason);
  void finish_not_finite(Sequence& sequence);
  bool is_stop(const Sequence& sequence, std::int32_t token) const;

  const std::vector<io::Request>& requests_;
  BatchOptions options_;
  int rank_;
  std::vector<KeptProgress> progress_;  // [requests]
  Restore restore_;
  std::vector<std::int32_t> queue_;  // requests to run, in order of admission
  std::size_t next_ = 0;             // of the queue
  std::int64_t waiting_work_ = 0;
  std::vector<RankLoad> loads_;
  std::vector<Sequence> slots_;
  std::vector<std::int32_t> order_;  // occupied slots in order of admission
  std::vector<std::int32_t> free_pages_;
  std::vector<ChunkBatch> chunks_;
  std::vector<FinishedRequest> finished_;
  int num_chunks_ = 0;
  bool has_prompt_ = false;
  std::int64_t pass_rows_ = 0;  // rows placed so far in this pass
  std::int64_t pass_prompt_tokens_ = 0;
};

/// Refuses the requests that need more KV cache than options.num_pages, but for those in `kept`
/// that are finished. `sized_by` says what gave the cache its size.
void refuse_beyond_cache(std::vector<io::Request>& requests, const std::vector<KeptProgress>& kept,
                         const BatchOptions& options, const std::string& sized_by);

}  // namespace atl
