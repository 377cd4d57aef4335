#pragma once
// All passes of a job, one after the other, counted: who gets which request, what each pass has of
// prompts and of sequences that generate, until nothing is left. As Batcher and Pass do it. Tokens
// are numbered request by request, as many for each as may go through the layers: as RoutingReplay
// takes the rows of a trace.

#include <cstdint>
#include <vector>

#include "app/plan/admission.hpp"
#include "app/plan/chunking.hpp"
#include "app/plan/pass_load.hpp"

namespace atl {

/// A request, counted.
struct JobRequest {
  std::int64_t prompt_tokens = 1;
  std::int64_t new_tokens = 1;  ///< 0: its prompt is scored
};

/// Of one owner, as BatchOptions says them.
struct JobLimits : ChunkLimits {
  int num_owners = 1;
  int num_flights = 1;
  int max_sequences = 64;  ///< of a flight
  int page_tokens = 64;
  std::int64_t num_pages = 0;
  bool scoring = false;
};

/// Of one pass, without its segments.
struct PassCount {
  Phase phase = Phase::prefill;
  std::int64_t most_rows = 0;  ///< of an owner
  std::int64_t prompt_tokens = 0;
  std::int64_t new_tokens = 0;
  std::int64_t rows = 0;
  double positions = 0;  ///< of the owner with most: sum over rows of the tokens that each sees
};

/// Passes in which a request's first and last token came.
struct RequestPasses {
  std::int64_t first = -1;
  std::int64_t last = -1;
};

class JobWalk {
 public:
  /// Throws Error where a request fits no owner's KV cache.
  JobWalk(const JobLimits& limits, const std::vector<JobRequest>& requests);

  /// The next pass, cut into so many chunks (0: as many as the limits let it); false: all is done.
  /// `load` may be null.
  bool next(int num_chunks, PassCount& count, PassLoad* load);
  /// [requests]
  const std::vector<RequestPasses>& requests() const { return passes_of_; }

 private:
  struct Sequence {
    std::int32_t request = 0;
    std::int64_t cached = 0;
    std::int64_t length = 0;  // known tokens
    bool prefilling = false;
  };
  struct Owner {
    std::vector<std::vector<Sequence>> flights;
    std::int64_t free_pages = 0;
  };
  void admit(int flight);
  RankLoad load_of(const Owner& owner, int flight) const;
  std::int64_t pages_of(std::int32_t request) const;
  void take(std::vector<Sequence>& sequences, std::int64_t all_rows, PassCount& count,
            std::vector<ChunkLoad>* chunks, int num_chunks);
  void finish(Owner& owner, int flight, PassCount& count);

  JobLimits limits_;
  const std::vector<JobRequest>& requests_;
  Admission waiting_;
  std::vector<Owner> owners_;
  std::vector<RequestPasses> passes_of_;
  std::vector<std::uint64_t> first_token_;  // [requests]
  std::int64_t pass_ = 0;
  std::int64_t turn_ = 0;
};

}  // namespace atl
